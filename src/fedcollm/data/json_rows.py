"""Read rows from JSON: an object per line, an array of objects, or an object with such an array under `data`.

Numbers of any length that Python reads are taken, and so are NaN and Infinity, which pandas writes.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import shorten

#: Key of an object that holds the rows instead of being one.
_ROWS_KEY = "data"
_SPACE = " \t\n\r"
_SPACES = re.compile(f"[{_SPACE}]*")

Placed = tuple[str, dict[str, Any]]


def json_rows(text: str, path: Path, by_line: bool) -> Iterator[Placed]:
    """Yield each object of a JSON file after its place, which is the file and the line where the object begins.

    Args:
        text: the content of the file.
        path: the file, for messages.
        by_line: whether an object must be in one line, as in JSON lines, unless the file is an array.

    Raises:
        UserError: the text is not JSON, or not rows.
    """
    start = _skip(text, 0)
    if text.startswith("[", start):
        yield from _array(text, start, f"{path}")
        return
    if by_line or not _begins_with_part(text):
        lines = enumerate(io.StringIO(text, newline=""), start=1)  # ends lines at \n, \r\n and \r, and nowhere else
        rows = [
            (f"{path}, line {n}", _object(line.rstrip(_SPACE), f"{path}", n)) for n, line in lines if line.strip(_SPACE)
        ]
    else:
        rows = [(f"{path}, line 1", _object(text, f"{path}", 1))]
    if len(rows) == 1:
        yield from _unwrapped(*rows[0])
    else:
        yield from rows


def _begins_with_part(text: str) -> bool:
    """Return whether the first line that is not blank is not JSON by itself, but only the beginning of it."""
    line = next((line for line in io.StringIO(text, newline="") if line.strip(_SPACE)), "")
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return line.strip(_SPACE) != text.strip(_SPACE)
    return False


def _object(text: str, file: str, line: int) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise UserError(_not_json(file, line, line, error)) from None
    return _checked(value, f"{file}, line {line}")


def _array(text: str, start: int, file: str) -> Iterator[Placed]:
    """Yield the objects of an array that begins at a position of the text."""
    decode = json.JSONDecoder(object_pairs_hook=_distinct).raw_decode
    at, counted, line = _skip(text, start + 1), 0, 1
    is_end = text.startswith("]", at)
    while not is_end:
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decode(text, at)
            at = _skip(text, at)
            is_end = text.startswith("]", at)
            if not is_end and not text.startswith(",", at):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        except (ValueError, RecursionError) as error:
            raise UserError(_not_json(file, line, 1, error)) from None
        yield f"{file}, line {line}", _checked(value, f"{file}, line {line}")
        at = at if is_end else _skip(text, at + 1)
    if _skip(text, at + 1) < len(text):
        raise UserError(
            f"{file}, line {line + text.count(chr(10), counted, at)}: there is more after the end of the array. Put "
            "all objects into one array, or write one JSON object per line."
        )


def _skip(text: str, at: int) -> int:
    """Return the first position from this one on that holds no white space."""
    found = _SPACES.match(text, at)
    return found.end() if found else at


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the key {shorten(twice)} is there twice")
    return found


def _checked(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(
            f"{place}: {shorten(value)} is not a JSON object. Write one JSON object per line, or an array of objects."
        )
    return cast("dict[str, Any]", value)


def _not_json(file: str, line: int, first: int, error: Exception) -> str:
    """Return the message about a value that begins in a line, in a text that begins in line `first` of the file."""
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    if isinstance(error, json.JSONDecodeError):
        line, reason = first + error.lineno - 1, f"{error.msg}, column {error.colno}"
    return f"{file}, line {line}: not valid JSON ({reason}). Write one JSON object per line, or an array of objects."


def _unwrapped(place: str, only: dict[str, Any]) -> Iterator[Placed]:
    """Yield the rows in the only object of a file; the object itself if it is a row."""
    rows = only.get(_ROWS_KEY)
    if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in cast("list[Any]", rows)):
        for number, row in enumerate(cast("list[dict[str, Any]]", rows), start=1):
            yield f"{place}, {_ROWS_KEY} {number}", row
        return
    values = list(only.values())
    if (values and all(isinstance(value, dict) for value in values)) or _are_columns(values):
        raise UserError(
            f"{place}: the file is one JSON object with {_names(only)}, as if they were columns. Write one JSON object "
            "per row: an array of objects, or one object per line (pandas: orient='records')."
        )
    yield place, only


def _are_columns(values: list[Any]) -> bool:
    """Return whether values are lists of plain values and of one length."""
    lists = [cast("list[Any]", value) for value in values if isinstance(value, list)]
    plain = not any(isinstance(value, (list, dict)) for one in lists for value in one)
    return bool(lists) and len(lists) == len(values) and plain and len({len(one) for one in lists}) == 1


def _names(found: dict[str, Any]) -> str:
    return shorten(list(found))
