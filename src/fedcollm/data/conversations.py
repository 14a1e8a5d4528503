"""Read conversations from a column of messages, in OpenAI's form and in ShareGPT's.

OpenAI's has a list of `{"role": ..., "content": ...}`, ShareGPT's a list of `{"from": ..., "value": ...}`; both are
taken as JSON text too. The last message must be the assistant's: it is the answer.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from fedcollm.data.cells import composed, is_empty
from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import shorten

#: Name of who speaks to the role that chat templates know.
ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}

#: Keys of a message that hold what is not text.
_CALLS = ("tool_calls", "function_call", "audio", "images")


class Conversation(NamedTuple):
    """A conversation.

    Attributes:
        turns: what was said before the answer, as pairs of a role and its text.
        answer: what the assistant said last; None if it said nothing then.
    """

    turns: tuple[tuple[str, str], ...]
    answer: str | None

    @property
    def prompt(self) -> str:
        """What was said before the answer, without the roles."""
        return "\n".join(text for _, text in self.turns)


def conversation(value: Any, where: str) -> Conversation:
    """Return the conversation that a cell holds.

    A system message without text is left out.

    Args:
        value: of the cell.
        where: the row and the column, for messages.

    Raises:
        UserError: it is no list of messages, one of them holds what is no text, or nothing precedes the answer.
    """
    messages = _messages(value, where)
    turns = [_turn(one, f"{where}, message {number}") for number, one in enumerate(messages, start=1)]
    answer = None
    if turns and turns[-1][0] == "assistant":
        answer = composed(turns.pop()[1]).strip() or None
    for number, (role, text) in enumerate(turns, start=1):
        if not text.strip() and role != "system":
            raise UserError(f"{where}, message {number}: the message of the {role} is empty. Fill it in, or remove it.")
    said = tuple((role, text) for role, text in turns if text.strip())
    if not said:
        raise UserError(f"{where} holds nothing before the answer. Start with a message of the user.")
    return Conversation(said, answer)


def _messages(value: Any, where: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if isinstance(value, dict):
        value = cast("dict[str, Any]", value).get("messages")
    if not isinstance(value, list):
        raise UserError(
            f"{where} holds no list of messages. Write a list of objects with role and content, or with from and value."
        )
    return cast("list[Any]", value)


def _turn(message: Any, where: str) -> tuple[str, str]:
    """Return the role and the text of a message."""
    if not isinstance(message, dict):
        raise UserError(f"{where}: {shorten(message)} is no message. Write an object with role and content.")
    fields = cast("dict[str, Any]", message)
    named, content = (_first(fields, keys) for keys in (("role", "from"), ("content", "value")))
    role = ROLES.get(named.strip().lower()) if isinstance(named, str) else None
    if role is None:
        raise UserError(
            f"{where}: the role {shorten(named)} is unknown. The roles are {', '.join(ROLES)}; remove conversations "
            "with tools."
        )
    if odd := next((key for key in _CALLS if fields.get(key)), None):
        raise UserError(f"{where}: it has {odd}, which can't be used: only text can. Remove the conversation.")
    return role, _text(content, where)


def _first(fields: dict[str, Any], keys: tuple[str, str]) -> Any:
    return next((fields[key] for key in keys if fields.get(key) is not None), None)


def _text(content: Any, where: str) -> str:
    """Return the text of a message; that of its parts, one after another."""
    if isinstance(content, list):
        return "".join(_part(part, where) for part in cast("list[Any]", content))
    if is_empty(content):
        return ""
    if not isinstance(content, str):
        raise UserError(f"{where}: it holds {shorten(content)}. A message needs text.")
    return content


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    fields = cast("dict[str, Any]", part) if isinstance(part, dict) else {}
    kind, text = fields.get("type", "text"), fields.get("text")
    if kind != "text" or not isinstance(text, str):
        raise UserError(
            f"{where}: it has a part of type {shorten(kind)}. Only text can be used: remove the conversation."
        )
    return text
