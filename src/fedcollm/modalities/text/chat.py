"""Conversations in the chat template of a tokenizer, split into what is read and what is learned."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from jinja2 import TemplateError, TemplateSyntaxError

from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import shorten
from fedcollm.modalities.text.bounded_template import MOST_STEPS, PowerError, bounded
from fedcollm.modalities.text.vocabulary import no_template

#: A role and what it says.
Turn = tuple[str, str]

#: The date that templates write which ask for today's, as those of Llama 3, so that a run is the same on every day. It
#: is the one that Llama's template writes where it can't ask.
_DATE = datetime.datetime(2024, 7, 26)

#: What a template gets for each directive of a date's format: transformers gives it no functions of ours.
_PARTS: Mapping[str, str] = {
    **{f"%{sign}": _DATE.strftime(f"%{sign}") for sign in "aAbBcdDFfGHIjmMpSTuUVwWxXyY"},
    **{f"%-{sign}": _DATE.strftime(f"%{sign}").lstrip("0") or "0" for sign in "dHIjmMSUWy"},
    "%e": "26",
    "%%": "%",
}
_ANSWERS = (
    "{% macro strftime_now(form) %}{% set made = namespace(text=form) %}{% for sign, part in fixed_dates.items() %}"
    "{% set made.text = made.text.replace(sign, part) %}{% endfor %}{{ made.text }}{% endmacro %}{{ '' }}"
)

#: Stands for an answer, to find what a template puts around it. No template changes letters and digits.
_PLACEHOLDER = "fedcollm7answer3placeholder"


class Rendered(NamedTuple):
    """A conversation and its answer as text.

    Attributes:
        prompt: everything before the answer.
        answer: the answer, as the template writes it.
        end: what follows up to and including the token that ends the assistant's turn.
    """

    prompt: str
    answer: str
    end: str


def check_template(tokenizer: Any) -> None:
    """Refuse a tokenizer without a chat template.

    Raises:
        UserError: it has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(no_template(tokenizer.name_or_path))


class Conversation:
    """A conversation in the chat template, without its answer.

    The prompt is what `apply_chat_template` returns with `add_generation_prompt`. If the template puts more before an
    assistant's answer, such as the empty <think> block of Qwen3, that is part of the prompt too. If the generation
    prompt itself contains more than the template keeps before an answer, the answer is learned after the generation
    prompt, because that is what the model will be given.

    Args:
        tokenizer: a tokenizer with a chat template.
        turns: the turns before the answer.

    Raises:
        UserError: the tokenizer has no template, or the template refuses the turns, or loses the answer.
    """

    def __init__(self, tokenizer: Any, turns: Sequence[Turn]):
        check_template(tokenizer)
        self._tokenizer, self._turns = tokenizer, turns
        self._generation = self._apply(turns, True)  # up to where the model begins
        before, found, after = self._apply([*turns, ("assistant", _PLACEHOLDER)], False).rpartition(_PLACEHOLDER)
        if not found:
            raise self._odd("leaves out the assistant's answer")
        self._before, self._after, self._end = before, after, _end(tokenizer, after)

    def with_answer(self, answer: str) -> Rendered:
        """Return the conversation with an answer of the assistant.

        Raises:
            UserError: the template writes something else before an answer than it does for generation.
        """
        whole, generation = self._apply([*self._turns, ("assistant", answer)], False), self._generation
        if whole.endswith(self._after):
            whole = whole.removesuffix(self._after)
            if whole.startswith(self._before) and self._before.startswith(generation):
                return Rendered(self._before, whole.removeprefix(self._before), self._end)
            if whole.startswith(generation):
                return Rendered(generation, whole.removeprefix(generation), self._end)
            if whole.startswith(self._before) and generation.startswith(self._before):
                return Rendered(generation, whole.removeprefix(self._before), self._end)
        raise self._odd(
            "does not put the assistant's answer after its generation prompt, so what a model learns would not be "
            "what it is asked for"
        )

    def _apply(self, turns: Sequence[Turn], generation: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        word = None
        try:
            arguments, word = _arguments(_named(self._tokenizer.chat_template))
            return self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation, **arguments
            )
        except Exception as error:  # a template is a program of somebody else, which may fail in any way
            raise self._odd(_failure(error, word)) from error

    def _odd(self, what: str) -> UserError:
        roles = ", ".join(role for role, _ in self._turns)
        return UserError(
            f"task.format: the chat template of {self._tokenizer.name_or_path or 'the model'} {what}. The conversation "
            f"has the roles {roles}, and begins with {shorten(self._turns[0][1] if self._turns else '')}. Change the "
            "messages or the template, choose another model, or set task.format.chat: false and write the roles into "
            "task.format.prompt."
        )


def _named(templates: Any) -> Any:
    """Return the template of chats: of several with names, `default` or the only one."""
    if isinstance(templates, list):
        templates = {one["name"]: one["template"] for one in cast("list[dict[str, str]]", templates)}
    if isinstance(templates, dict):
        by_name = cast("dict[str, str]", templates)
        return by_name.get("default", next(iter(by_name.values())) if len(by_name) == 1 else None)
    return templates


def _arguments(template: Any) -> tuple[dict[str, Any], str | None]:
    """Return arguments of `apply_chat_template` with which a template can't run forever, and writes `_DATE` for today.

    Also return the word that its message has if it takes too many steps.
    """
    if not isinstance(template, str):
        return {"chat_template": template}, None
    asks = "strftime_now" in template
    source, word = bounded(_ANSWERS + template if asks else template)
    return {"chat_template": source} | ({"fixed_dates": dict(_PARTS)} if asks else {}), word


def _failure(error: Exception, word: str | None) -> str:
    """Return what went wrong in a template: it raised an error on purpose, has a mistake, took too long, or failed.

    Args:
        error: what it raised.
        word: what is in the message of an error if it took too many steps.
    """
    said = " ".join(str(error).split())[:300]
    if word and word in said:
        return f"takes more than {MOST_STEPS} steps, so that it may never end"
    if isinstance(error, PowerError):
        return "computes a power (**), which may never end"
    if isinstance(error, TemplateSyntaxError):
        return f"is no valid template (line {error.lineno}: {said})"
    if type(error) is TemplateError:  # which raise_exception raises
        return f"refuses this conversation ({said})"
    return f"fails on this conversation ({type(error).__name__}: {said})"


def _end(tokenizer: Any, after: str) -> str:
    """Return what a template puts after an answer, up to and including its first special token.

    Without a special token, the first other added token that is not blank ends the turn; without that, the tokenizer's
    token for the end of text does.
    """
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special} | {str(t) for t in tokenizer.all_special_tokens}
    for tokens in (special, {token.content for token in added if token.content.strip()}):
        found = [(after.index(token), -len(token)) for token in tokens if token and token in after]
        if found:
            at, length = min(found)
            return after[: at - length]
    return tokenizer.eos_token or ""
