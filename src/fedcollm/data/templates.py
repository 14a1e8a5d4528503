"""Templates of prompts: text with the names of columns in braces, of which some may be empty in a row."""

import contextlib
import datetime
import itertools
import re
import string
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from fedcollm.data.cells import cell_value, is_whole, plain_text
from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import shorten

_KEY = "task.format.prompt"

#: Largest width or precision in a template, and most columns: it may come from another party, and makes every prompt.
_WIDEST, _MOST = 1000, 1000

#: Last letters of formats of numbers.
_TYPES = tuple("bcdeEfFgGnoxX%")


class _Field(NamedTuple):
    """A piece of a line: literal text and, unless `column` is empty, the column that follows it.

    The conversion (`r`, `s`, `a` or None) and the format specification are those of Python's format strings.
    """

    text: str
    column: str
    conversion: Literal["r", "s", "a"] | None
    spec: str


class Template:
    """A template of a prompt. A column may have any name.

    A column may be empty in a row if another one of the template is filled: a line whose columns are all empty is left
    out of the prompt.

    Attributes:
        columns: the names of its columns.

    Args:
        prompt: the template.
        key: the key of the configuration that gives it, for messages.

    Raises:
        UserError: it is no template, or has no column.
    """

    def __init__(self, prompt: str, key: str = _KEY):
        try:
            fields = list(itertools.islice(_fields(prompt), _MOST + 1))
            if len(fields) > _MOST:
                raise ValueError(f"more than {_MOST} columns")
        except ValueError as error:
            raise UserError(
                f"{key}: {prompt!r:.200} is not a valid template ({error}). Write a column as {{column}}."
            ) from None
        self.columns: list[str] = list(dict.fromkeys(field.column for field in fields if field.column))
        if not self.columns:
            raise UserError(f"{key}: {prompt!r:.200} contains no column. Write a column as {{column}}.")
        self._key = key
        self._lines = _lines(fields)

    @property
    def literals(self) -> tuple[str, ...]:
        r"""What stands in the template besides its columns, in order.

        >>> Template("Note: {note}\nKind:").literals
        ('Note: ', 'Kind:')
        """
        return tuple(field.text for fields in self._lines for field in fields if field.text.strip())

    def fill(self, row: dict[str, Any], place: str) -> tuple[str, list[str]]:
        """Return the prompt of a row, and the columns that are empty in it.

        Args:
            row: column to value.
            place: file and row, for messages.

        Raises:
            UserError: all columns of the template are empty, or one holds what is no text.
        """
        values = {column: cell_value(row, column, place, self._key) for column in self.columns}
        empty = [column for column, value in values.items() if value is None]
        if len(empty) == len(values):
            names = " and ".join(map(repr, empty))
            raise UserError(
                f"{place}: column{'s' * (len(empty) > 1)} {names} ({self._key}) "
                f"{'are empty. Fill in at least one' if len(empty) > 1 else 'is empty. Fill it in'}, or remove the row."
            )
        lines = [_line(fields, values, place, self._key) for fields in self._lines]
        return "\n".join(line for line in lines if line is not None), empty


def _fields(prompt: str) -> Iterator[_Field]:
    for text, column, spec, conversion in string.Formatter().parse(prompt):
        if column == "":
            raise ValueError("{} without a name")
        if conversion not in (None, "r", "s", "a"):
            raise ValueError(f"unknown conversion !{conversion}")
        numbers = (number.lstrip("0") or "0" for number in re.findall(r"\d+", spec or ""))
        if any(len(number) > 4 or int(number) > _WIDEST for number in numbers):
            raise ValueError(f"a format wider than {_WIDEST} characters")
        yield _Field(text, column or "", conversion, spec or "")


def _lines(fields: Sequence[_Field]) -> list[list[_Field]]:
    """Return the fields of each line of the template, without the line ends."""
    lines: list[list[_Field]] = [[]]
    for field in fields:
        *whole, last = field.text.split("\n")
        for text in whole:
            lines[-1].append(_Field(text, "", None, ""))
            lines.append([])
        lines[-1].append(field._replace(text=last))
    return lines


def _line(fields: Sequence[_Field], values: dict[str, Any], place: str, key: str) -> str | None:
    """Return a line of a prompt; None if it has columns and all are empty."""
    columns = [field.column for field in fields if field.column]
    if columns and all(values[column] is None for column in columns):
        return None
    return "".join(
        text + (_formatted(values[column], (conversion, spec), f"column {column!r}", place, key) if column else "")
        for text, column, conversion, spec in fields
    )


def _formatted(value: Any, how: tuple[Literal["r", "s", "a"] | None, str], column: str, place: str, key: str) -> str:
    if value is None:
        return ""
    text, (conversion, spec) = plain_text(value), how
    if text is None:
        raise UserError(f"{place}: {column} ({key}) holds {shorten(value)}. A prompt needs text, a number or a date.")
    if conversion is None and not spec:
        return text
    try:
        return _in_format(value, text, conversion, spec)
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise UserError(
            f"{place}: {key} can't format {shorten(value)} in {column} ({error}). Correct the row or the template."
        ) from None


def _in_format(value: Any, text: str, conversion: Literal["r", "s", "a"] | None, spec: str) -> str:
    """Return a value in a format, which is one of the text that the value is without it, or of a number or a date.

    Raises:
        ValueError: the format does not suit the value.
    """
    if conversion is not None:
        return format(text if conversion == "s" else string.Formatter().convert_field(_plain(value), conversion), spec)
    *others, last = _forms(value, text, spec)
    for form in others:
        with contextlib.suppress(ValueError):
            return format(form, spec)
    return format(last, spec)


def _plain(value: Any) -> Any:
    """Return a number without a fraction as a whole one, such as 7.0 in a column with empty cells."""
    return int(value) if isinstance(value, float) and is_whole(value) else value


def _forms(value: Any, text: str, spec: str) -> list[Any]:
    """Return what a format may be of, the first that it suits: `{a:>5}` is of the text True, and `{a:d}` of 1."""
    typed = spec[-1:] in _TYPES
    if isinstance(value, (datetime.date, datetime.time)):
        return [value if "%" in spec else text]
    if isinstance(value, str) or spec.endswith("s"):
        return [text]
    if isinstance(value, bool):
        return [value] if typed else [text, value]
    if isinstance(value, float):
        return [value, _plain(value)] if typed else [_plain(value), value]
    if isinstance(value, Decimal) and not typed and len(text) != len(str(value)):
        return [text, value]  # without an exponent
    return [value] if isinstance(value, (int, Decimal)) else [text]
