"""What a cell of a table holds: text, a number, a truth value or a date, and how each becomes text.

Numbers are written as in JSON, but a number without a fraction has none: 3.0 is written as 3, since a column of whole
numbers becomes one of floats as soon as a cell is empty. A decimal has no exponent. Dates and times are as in ISO 8601,
with a space in the middle. Bytes are text in UTF-8.
"""

import datetime
import difflib
import math
import unicodedata
import uuid
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, cast

from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import shorten
from fedcollm.modalities.plain_text import check_text

#: What a cell may hold to become text.
_PLAIN = (str, bool, int, float, Decimal, datetime.date, datetime.time, uuid.UUID)

#: Beyond it, not every whole number is a float, and digits would be made up.
_EXACT = 2**53


def is_empty(value: Any) -> bool:
    """Return whether a cell is empty: null, not a number (NaN), or text of white space.

    >>> [is_empty(value) for value in (None, float("nan"), " ", 0, [])]
    [True, True, True, False, False]
    """
    if isinstance(value, (str, bytes)):
        return not value.strip()
    return value is None or bool(value != value)


def plain_text(value: Any) -> str | None:
    """Return a value of a cell as text, with the white space that it has; None for what is no text, such as a list.

    >>> plain_text(3.0), plain_text(2.5), plain_text(Decimal("1E+2")), plain_text(True), plain_text([1])
    ('3', '2.5', '100', 'True', None)
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, _PLAIN):
        return None
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() else str(value)
    if isinstance(value, float) and is_whole(value):
        return str(int(value))
    try:
        return str(value)
    except ValueError:  # a whole number of more digits than Python writes
        return None


def is_whole(value: float) -> bool:
    """Return whether a number has no fraction, and is not so large that its digits would be made up."""
    return math.isfinite(value) and value == int(value) and abs(value) < _EXACT


def decoded(value: Any, what: str) -> Any:
    """Return a value with text in place of all bytes in it.

    Args:
        value: of a cell; lists and objects are searched.
        what: where it stands, for the message.

    Raises:
        UserError: bytes are not text in UTF-8.
    """
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{what} holds bytes that are no text in UTF-8 ({shorten(value)}, byte {error.start + 1}). Save "
                "the column as text."
            ) from None
    if isinstance(value, list):
        return [decoded(part, what) for part in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {key: decoded(part, what) for key, part in cast("dict[Any, Any]", value).items()}
    return value


def check_columns(rows: Iterable[dict[str, Any]], asked: Iterable[tuple[str, str]], where: str) -> None:
    """Check that each column that is asked for is in some row.

    Args:
        rows: the rows of a file.
        asked: names of columns, each with the key of the configuration that names it.
        where: the file, for the message.

    Raises:
        UserError: no row has one of the columns.
    """
    known = dict.fromkeys(name for row in rows for name in row)
    for column, key in asked:
        if composed(column) not in known:
            raise UserError(f"{where}: there is no column {column!r} ({key}). {_known(column, list(known))}")


def _known(column: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(column, [name for name in known if len(name) < 200], 1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    names = ", ".join(known[:30])
    more = f" and {len(known) - 30} more" if len(known) > 30 else ""
    return f"The columns are {names if len(names) < 1000 else names[:997] + '...'}{more}.{guess}"


def cell_value(row: dict[str, Any], column: str, place: str, key: str) -> Any:
    """Return what a row holds in a column, bytes as text; None if it is empty, or the row does not have the column.

    Args:
        row: column to value.
        column: name of the column.
        place: file and row, for the message.
        key: key of the configuration that names the column, for the message.

    Raises:
        UserError: the column holds text that `check_text` refuses, or bytes that are no text.
    """
    value = row.get(composed(column))
    if is_empty(value):
        return None
    what = f"{place}: column {column!r} ({key})"
    if not isinstance(value, (str, int, float)):
        try:
            value = decoded(value, what)
        except RecursionError:
            raise UserError(f"{what} holds a value that is nested too deeply. Correct it, or remove the row.") from None
    check_text(value, what)
    return value


def filled(row: dict[str, Any], column: str, place: str, key: str) -> Any:
    """Return what a row holds in a column that may not be empty; see `cell_value`.

    Raises:
        UserError: it is empty, or `cell_value` refuses it.
    """
    value = cell_value(row, column, place, key)
    if value is None:
        raise UserError(f"{place}: column {column!r} ({key}) is empty. Fill it in, or remove the row.")
    return value


def cell_text(row: dict[str, Any], column: str, place: str, key: str) -> str:
    """Return what a row holds in a column as text without space around it, in Unicode NFC.

    Raises:
        UserError: the column is empty, or holds what is no text, such as a list.
    """
    return label_text(filled(row, column, place, key), f"{place}: column {column!r} ({key})")


def label_text(value: Any, what: str) -> str:
    """Return a value as a label: as text without space around it, in Unicode NFC.

    Args:
        value: of a cell.
        what: where it stands, for the message.

    Raises:
        UserError: it is no text, such as a list.
    """
    text = plain_text(value)
    if text is None:
        raise UserError(f"{what} holds {shorten(value)}. It needs text, a number or a date.")
    return composed(text).strip()


def composed(text: str) -> str:
    """Return a text in Unicode NFC, in which each letter has one spelling."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)
