"""The choices of a row: those that all rows share, or those of a column, in the forms of public data sets.

A column holds a list, a list as JSON or Python writes it, a text with | between the choices, a list of
`{"label": ..., "text": ...}`, or ARC's `{"text": [...], "label": [...]}`.
"""

import ast
import json
import re
import string
import warnings
from typing import Any, NamedTuple, cast

from fedcollm.data.cells import composed, is_empty, plain_text
from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import shorten
from fedcollm.modalities.plain_text import check_text

#: How a list or an object of texts begins, as JSON, Python or NumPy writes it.
_LISTED = re.compile(r"""\s*(array\()?[\[({][\[({\s]*['"]""")

LETTERS = string.ascii_uppercase


class Choices(NamedTuple):
    """The choices of a row.

    Attributes:
        texts: the choices.
        letters: what stands for each choice: A, B, C, ..., or the labels that the row gives.
        has_labels: whether the row gives labels.
    """

    texts: tuple[str, ...]
    letters: tuple[str, ...]
    has_labels: bool = False


def listed(choices: list[str], where: str) -> Choices:
    """Return choices that all rows share.

    Args:
        choices: as the configuration lists them.
        where: the key that lists them, for messages.

    Raises:
        UserError: there are fewer than two, one is empty, or two are equal.
    """
    texts = _texts(list(choices), where)
    if len(set(texts)) < len(texts):
        raise UserError(f"{where} lists a choice twice: {shorten(choices)}. List each once.")
    return Choices(texts, tuple(LETTERS[: len(texts)]))


def of_cell(value: Any, where: str) -> Choices:
    """Return the choices that a cell holds.

    Args:
        value: of the cell.
        where: the row and the column, for messages.

    Raises:
        UserError: they are not in a form of this module, or there are fewer than two or more than 26.
    """
    value = parsed(value) if isinstance(value, str) else value
    labels, texts = _labelled(value)
    if not isinstance(texts, list):
        raise UserError(
            f"{where} holds {shorten(value)}. Write the choices as a list, as a JSON list, or as text with | between "
            "them."
        )
    found = _texts(cast("list[Any]", texts), where)
    if len(found) > len(LETTERS):
        raise UserError(f"{where} holds {len(found)} choices. Give at most {len(LETTERS)}.")
    if labels is None:
        return Choices(found, tuple(LETTERS[: len(found)]))
    named = [composed(plain_text(label) or "").strip() for label in labels]
    if len(named) != len(found) or len(set(named)) < len(named) or not all(named):
        raise UserError(f"{where} holds the labels {shorten(labels)}. Give each of the {len(found)} choices its own.")
    return Choices(found, tuple(named), has_labels=True)


def parsed(text: str) -> Any:
    """Return what a text holds: a list or an object in JSON or as Python writes it, or texts with | between them.

    >>> parsed("['yes|no', 'maybe']"), parsed("yes|no"), parsed("[a]|[b]")
    (['yes|no', 'maybe'], ['yes', 'no'], ['[a]', '[b]'])

    A text that begins as a list of texts and is none is returned as it is.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _literal(text)
    if isinstance(value, tuple):
        value = list(cast("tuple[Any, ...]", value))
    if isinstance(value, (list, dict)):
        return cast("Any", value)
    return text if _LISTED.match(text) else text.split("|")


def _literal(text: str) -> Any:
    """Return the value that Python writes as a text; None if there is none, or it is a text or a number."""
    if not _LISTED.match(text):
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # of backslashes
            return ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _labelled(value: Any) -> tuple[list[Any] | None, Any]:
    """Return the labels of choices, None if there are none, and their texts."""
    if isinstance(value, dict):
        found = cast("dict[str, Any]", value)
        labels, texts = found.get("label"), found.get("text")
        return (cast("list[Any]", labels), texts) if isinstance(labels, list) else (None, texts)
    entries = cast("list[Any]", value) if isinstance(value, list) else []
    if entries and all(isinstance(one, dict) and {"label", "text"} <= set(cast("Any", one)) for one in entries):
        return [one["label"] for one in entries], [one["text"] for one in entries]
    return None, cast("Any", value)


def _texts(choices: list[Any], where: str) -> tuple[str, ...]:
    check_text(choices, where)
    texts = [None if is_empty(choice) else plain_text(choice) for choice in choices]
    if not all(texts):
        raise UserError(f"{where} holds {shorten(choices)}. Each choice must be text that is not empty.")
    if len(texts) < 2:
        raise UserError(f"{where} holds {shorten(choices)}. Give at least 2 choices.")
    return tuple(composed(str(text)).strip() for text in texts)
