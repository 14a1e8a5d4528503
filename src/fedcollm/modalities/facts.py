"""Check the facts about a task that a client gets from the server, before anything is built from them."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, cast

from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import shorten
from fedcollm.modalities.plain_text import fault

#: Bounds on the names of classes.
MOST_CLASSES, LONGEST_CLASS = 10_000, 200

#: Bounds on the longest clip, in milliseconds: some models take less than a second.
SHORTEST_CLIP, LONGEST_CLIP = 100, 3_600_000


def class_fault(classes: Sequence[Any], fewest: int = 2) -> str | None:
    """Return why values are not the names of classes; None if they are.

    >>> class_fault(["cat", "dog"]), class_fault(["cat", "cat"])
    (None, "'cat' is there twice")
    """
    if not fewest <= len(classes) <= MOST_CLASSES:
        return f"there are {len(classes)} of them, which is not from {fewest} to {MOST_CLASSES}"
    seen: set[str] = set()
    for name in classes:
        if not isinstance(name, str) or not name or name != name.strip():
            return f"{shorten(name)} is not a text without space around it"
        if len(name) > LONGEST_CLASS:
            return f"{shorten(name)} has {len(name)} characters, more than {LONGEST_CLASS}"
        if reason := fault(name):
            return f"{shorten(name)} has {reason}"
        if name in seen:
            return f"{shorten(name)} is there twice"
        seen.add(name)
    return None


def class_names(task: str, facts: Mapping[str, Any], fewest: int = 2) -> list[str]:
    """Return the names of the classes in a server's facts.

    Args:
        task: name of the task, for messages.
        facts: `Modality.facts`, as the server sent it.
        fewest: the smallest number of classes.

    Raises:
        UserError: they are missing, or not `fewest` to `MOST_CLASSES` distinct texts of at most `LONGEST_CLASS`
            characters.
    """
    classes = _fact(task, facts, "classes")
    reason = class_fault(cast("list[Any]", classes), fewest) if isinstance(classes, list) else "they are not a list"
    if reason:
        _refuse(task, "classes", classes, reason)
    return cast("list[str]", classes)


def whole_number(task: str, facts: Mapping[str, Any], key: str, least: int, most: int) -> int:
    """Return a whole number in a server's facts.

    Args:
        task: name of the task, for messages.
        facts: `Modality.facts`, as the server sent it.
        key: its key.
        least: the smallest number.
        most: the largest one.

    Raises:
        UserError: it is missing, no whole number, or out of these bounds.
    """
    value = _fact(task, facts, key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        _refuse(task, key, value, f"it is not a whole number from {least} to {most}")
    return value


def clip_seconds(task: str, facts: Mapping[str, Any]) -> float:
    """Return the duration of the longest clip in a server's facts, in seconds.

    Raises:
        UserError: `milliseconds` is missing, or not a whole number from `SHORTEST_CLIP` to `LONGEST_CLIP`.
    """
    return whole_number(task, facts, "milliseconds", SHORTEST_CLIP, LONGEST_CLIP) / 1_000


def token_names(task: str, facts: Mapping[str, Any], key: str, known: Mapping[str, int], most: int) -> list[str]:
    """Return the names of tokens in a server's facts.

    Args:
        task: name of the task, for messages.
        facts: `Modality.facts`, as the server sent it.
        key: their key.
        known: the tokens of the model.
        most: the largest number of tokens.

    Raises:
        UserError: they are missing, or not a list of 1 to `most` tokens of the model.
    """
    value = _fact(task, facts, key)
    names = cast("list[Any]", value) if isinstance(value, list) else []
    if not 1 <= len(names) <= most or not all(isinstance(name, str) and name in known for name in names):
        _refuse(task, key, value, f"it is not a list of 1 to {most} tokens of the model")
    return cast("list[str]", names)


def _fact(task: str, facts: Mapping[str, Any], key: str) -> Any:
    if key not in facts:
        raise UserError(f"task {task}: the server's facts lack {key}. Get a fresh copy of them from the server.")
    return facts[key]


def _refuse(task: str, key: str, value: Any, reason: str) -> NoReturn:
    raise UserError(
        f"task {task}: the server's facts have {key} {_shown(value)}: {reason}. Get a fresh copy of them from the "
        "server."
    )


def _shown(value: Any) -> str:
    """Return the start of a value: of a number of any length, and of a long list."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return "of more than 30 digits"
    return shorten(cast("list[Any]", value)[:20] if isinstance(value, list) else value)
