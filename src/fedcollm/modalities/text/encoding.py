"""Prompts and answers as tokens: where one ends and the other begins, and what is cut."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import shorten
from fedcollm.modalities.text.chat import Conversation, Rendered, Turn, check_template
from fedcollm.modalities.text.forward import Tokens
from fedcollm.modalities.text.style import Style
from fedcollm.modalities.text.vocabulary import check_known


class Encoded(NamedTuple):
    """A prompt and one answer as tokens. Together they are the tokens of the whole text.

    Attributes:
        prompt: the tokens before the answer, without the oldest ones if they don't fit.
        answer: the tokens of the answer, at least one.
        end: the tokens that end a free answer; empty for a choice.
        lead: text at the beginning of the answer's tokens that is not part of the answer itself.
        full: the tokens before the answer, with the oldest ones.
    """

    prompt: Tokens
    answer: Tokens
    end: Tokens = ()
    lead: str = ""
    full: Tokens = ()


class Encoder:
    """Encodes prompts with their answers, and keeps the results.

    A prompt stays as it was written. If it ends with white space, the answer follows at once, and otherwise after the
    style's joiner. Prompt and answer are encoded together, so that the split does not change how the text is tokenized:

    1. The prompt's own tokens are the prompt, if the whole text begins with them and has more. If the last one is the
       token for unknown text, it may hold the beginning of the answer too, so the characters of the tokens decide.
    2. Otherwise white space at the end of the prompt moves to the answer, as in lm-evaluation-harness.
    3. Otherwise a token reaches across the border, as in Japanese. This token and all later ones are the answer.

    A sequence that is too long loses the oldest tokens of its prompt, except `start`; an answer is never cut.

    Args:
        tokenizer: the transformers tokenizer.
        vocabulary_size: number of tokens that the models know.
        context_length: longest sequence in tokens.
        start: tokens that every prompt begins with. A prompt that has them already does not get them twice, and a chat
            template decides itself.
        style: how prompts and answers become one text.

    Raises:
        UserError: the style is `chat`, and the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, vocabulary_size: int, context_length: int, start: Tokens, style: Style):
        if style.chat:
            check_template(tokenizer)
        self.tokenizer: Any = tokenizer
        self.vocabulary_size: int = vocabulary_size
        self.context_length: int = context_length
        self.start: Tokens = start
        self.style: Style = style
        self._known: dict[tuple[str, tuple[Turn, ...], bool, str], Encoded] = {}
        self._cut: set[tuple[str, tuple[Turn, ...]]] = set()
        self._cut_to_ask: set[Tokens] = set()

    @property
    def truncated(self) -> int:
        """Number of distinct prompts that have been cut so far."""
        return len(self._cut)

    @property
    def truncated_to_ask(self) -> int:
        """Number of distinct prompts that have been cut so far to leave room for what a model generates."""
        return len(self._cut_to_ask)

    @property
    def lacks_end(self) -> bool:
        """Whether free answers have been encoded without a token that ends them."""
        return any(free and not one.end for (_, _, free, _), one in self._known.items())

    def encode(
        self, prompt: str, answers: Sequence[str], turns: tuple[Turn, ...] = (), free: bool = False
    ) -> list[Encoded]:
        """Return a prompt with each of several answers, with a single call of the tokenizer for new ones.

        Args:
            prompt: the text before the answer; not used if there are turns.
            answers: the answers.
            turns: the conversation before the answer.
            free: whether the answers are free, so that they end with the token for the end of text or turn.

        Raises:
            UserError: an answer does not fit, or has no token, or the chat template refuses the conversation.
        """
        new = [answer for answer in answers if (prompt, turns, free, answer) not in self._known]
        if new and (turns or self.style.chat):
            talk = Conversation(self.tokenizer, turns or (("user", prompt),))
            for answer in new:
                self._known[prompt, turns, free, answer] = self._chat(prompt, turns, talk.with_answer(answer), free)
        elif new:
            self._plain(prompt, new, free)
        return [self._known[prompt, turns, free, answer] for answer in answers]

    def emptied(self) -> "Encoder":
        """Return the same encoder without any results, for prompts that are needed only for a while."""
        return Encoder(self.tokenizer, self.vocabulary_size, self.context_length, self.start, self.style)

    def asked(self, one: Encoded) -> tuple[Tokens, int]:
        """Return the prompt that a model continues freely, and the largest number of new tokens.

        Neither depends on how long the right answer is. A prompt that is too long is cut so that `max_new_tokens` fit
        after it, but never to less than half of the context.
        """
        most = self.style.max_new_tokens
        room = self.context_length + 1 - min(most, max(self.context_length // 2, 1))  # the last token is never an input
        start, rest = self._started(one.full, False)
        if len(one.full) > room:
            self._cut_to_ask.add(one.full)
        prompt = _newest(room, start, rest)
        return prompt, min(most, self.context_length + 1 - len(prompt))

    def text_tokens(self, text: str) -> Tokens:
        """Return the tokens of a text without an answer, cut to the context."""
        tokens = self._tokens([text.rstrip()])[0]
        check_known(tokens, self.tokenizer, self.vocabulary_size, text)
        return self._cut_to(self.context_length, *self._started(tokens, True), key=(text, ()))

    def _plain(self, prompt: str, answers: Sequence[str], free: bool) -> None:
        gap = "" if prompt[-1:].isspace() else self.style.joiner
        bare = [prompt.rstrip()] if prompt[-1:].isspace() else []
        texts = [f"{prompt}{gap}{answer}" for answer in answers]
        found = self._tokens([prompt, *bare, *texts])
        eos = self.tokenizer.eos_token_id if free and self.style.learns_end else None
        self._check_end(eos)
        for answer, text, whole in zip(answers, texts, found[1 + len(bare) :], strict=True):
            check_known(found[0] + whole, self.tokenizer, self.vocabulary_size, text)
            at, moved = self._border(text, len(prompt), found[: 1 + len(bare)], whole)
            end = () if eos is None else (eos,)
            kept = whole[:-1] if end and whole[-1] == eos and at < len(whole) - 1 else whole
            one = Encoded(kept[:at], kept[at:], end, moved + gap)
            self._known[prompt, (), free, answer] = self._fitted(one, (prompt, ()), answer, True)

    def _check_end(self, end: int | None) -> None:
        if end is not None and end >= self.vocabulary_size:
            raise UserError(
                f"the tokenizer ends texts with {self.tokenizer.convert_ids_to_tokens(end)!r}, token {end}, but the "
                f"models know only {self.vocabulary_size} tokens. Enlarge their embeddings (resize_token_embeddings) "
                "and save them, or take the tokenizer that belongs to them."
            )

    def _chat(self, prompt: str, turns: tuple[Turn, ...], talk: Rendered, free: bool) -> Encoded:
        end = talk.end if free and self.style.learns_end else ""
        text = talk.prompt + talk.answer
        *prefixes, whole, longer = self._tokens([talk.prompt, talk.prompt.rstrip(), text, text + end])
        check_known(longer, self.tokenizer, self.vocabulary_size, text + end)
        at, moved = self._border(text + end, len(talk.prompt), prefixes, longer)
        last = max(at + 1, _common(whole, longer)) if end else len(longer)
        one = Encoded(longer[:at], longer[at:last], longer[last:], moved)
        return self._fitted(one, (prompt, turns), talk.answer, False)

    def _tokens(self, texts: list[str]) -> list[Tokens]:
        return list(map(tuple, self.tokenizer(texts, add_special_tokens=False).input_ids))

    def _border(self, text: str, border: int, prefixes: Sequence[Tokens], whole: Tokens) -> tuple[int, str]:
        """Return how many tokens of a text are the prompt's, and the part of the prompt that moves to the answer.

        Args:
            text: the whole text.
            border: number of its characters that are the prompt's.
            prefixes: tokens of the prompt, with and without white space at its end.
            whole: tokens of the text.

        Raises:
            UserError: the text has no tokens.
        """
        if not whole:
            raise UserError(f"the text {shorten(text)} has no tokens in the models' vocabulary. Correct the example.")
        for prefix in prefixes:
            if len(prefix) < len(whole) and whole[: len(prefix)] == prefix and not self._hides(prefix):
                return len(prefix), ""
        if not getattr(self.tokenizer, "is_fast", False):
            return min(_common(prefixes[0], whole), len(whole) - 1), ""
        spans = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        at = next((i for i, (_, last) in enumerate(spans) if last > border), len(whole) - 1)
        return at, text[spans[at][0] : border]

    def _hides(self, prefix: Tokens) -> bool:
        """Return whether the last token of a prompt stands for any text, so that it may hold some of the answer too."""
        if not prefix or not getattr(self.tokenizer, "is_fast", False):
            return False
        return prefix[-1] == self.tokenizer.unk_token_id

    def _started(self, tokens: Tokens, add: bool) -> tuple[Tokens, Tokens]:
        """Return the tokens that a prompt begins with, which are never cut, and the rest of it."""
        if self.start and tokens[: len(self.start)] == self.start:
            return self.start, tokens[len(self.start) :]
        return (self.start if add else ()) or (() if tokens else (self.start_token(),)), tokens

    def _fitted(self, one: Encoded, key: tuple[str, tuple[Turn, ...]], answer: str, add: bool) -> Encoded:
        """Return a prompt and an answer with `start`, cut to the context."""
        start, rest = self._started(one.prompt, add)
        check_known(start, self.tokenizer, self.vocabulary_size, "the beginning of every text")
        length = len(one.answer) + len(one.end)
        room = self.context_length - length + 1  # the last token is never an input
        if room < 1:
            raise UserError(self._too_long(length, answer))
        return one._replace(prompt=self._cut_to(room, start, rest, key), full=start + rest)

    def _cut_to(self, room: int, start: Tokens, rest: Tokens, key: tuple[str, tuple[Turn, ...]]) -> Tokens:
        if len(start + rest) > room:
            self._cut.add(key)
        return _newest(room, start, rest)

    def _too_long(self, length: int, answer: str) -> str:
        limit, shorter = self.context_length, self.style.max_length
        if shorter is not None and limit == shorter:
            place, what = f"task.max_length: {limit} tokens", "raise task.max_length"
        else:
            place, what = f"the models' context of {limit} tokens", "choose models with a longer context"
        return f"an answer of {length} tokens does not fit into {place}: {answer[:60]!r}. Shorten it, or {what}."

    def end_token(self) -> int | None:
        """Return the token that ends a free answer; None if there is none."""
        if not self.style.chat:
            end = self.tokenizer.eos_token_id
            return end if end is not None and end < self.vocabulary_size else None
        last = self._tokens([Conversation(self.tokenizer, (("user", "?"),)).with_answer("!").end])[0]
        return last[-1] if last and last[-1] < self.vocabulary_size else None

    def start_token(self) -> int:
        """Return the token that replaces an empty prompt, from which the first token is predicted.

        It is the token for the beginning of a text, or else for its end, as in lm-evaluation-harness.
        """
        special = self.tokenizer
        tokens = (special.bos_token_id, special.eos_token_id, special.pad_token_id)
        return next((token for token in tokens if token is not None and token < self.vocabulary_size), 0)

    @property
    def padding(self) -> int:
        """The token that fills sequences up; the models never see it."""
        token = self.tokenizer.pad_token_id
        return token if token is not None and token < self.vocabulary_size else 0


def _newest(room: int, start: Tokens, rest: Tokens) -> Tokens:
    """Return `start` and the last tokens of the rest, as many as there is room for.

    >>> _newest(3, (1,), (2, 3, 4))
    (1, 3, 4)
    """
    return (start + rest[max(len(start + rest) - room, 0) :])[-room:]


def _common(one: Tokens, other: Tokens) -> int:
    """Return the number of tokens with which both begin.

    >>> _common((1, 2, 3), (1, 2, 4, 5))
    2
    """
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
