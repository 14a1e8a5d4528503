"""What each column of a table holds, as far as a configuration can be guessed from it."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, cast

from fedcollm.data.cells import composed, decoded, is_empty, plain_text
from fedcollm.data.choices import parsed
from fedcollm.errors import UserError

#: Words in the names of columns that hold the choices of each row.
_CHOICES = ("choice", "option")

_CONVERSATIONS = ({"role", "content"}, {"from", "value"})
_ROWS_PER_VALUE = 4  # a column with fewer rows per distinct value has no classes


@dataclass(frozen=True)
class Column:
    """What a column of a table holds.

    Attributes:
        name: its name.
        filled: number of rows in which it is not empty.
        values: distinct values as text to how many rows have them; nothing for lists and objects.
        nested: the first list or object in it, if there is one.
        length: mean number of characters of its values.
    """

    name: str
    filled: int
    values: Mapping[str, int]
    nested: Any
    length: float

    @property
    def is_constant(self) -> bool:
        """Whether all rows have one value or none."""
        return len(self.values) < 2 and self.nested is None

    @property
    def counts_rows(self) -> bool:
        """Whether every row has a number of its own, as an id has."""
        return len(self.values) == self.filled and all(value.lstrip("-").isdecimal() for value in self.values)

    @property
    def fits_a_template(self) -> bool:
        """Whether the name can stand in the braces of a template."""
        return bool(self.name) and not set(self.name) & set("{}!:")

    def has_classes(self, most: int) -> bool:
        """Whether few enough values, each in several rows, can be classes or groups."""
        return 2 <= len(self.values) <= min(most, self.filled // _ROWS_PER_VALUE)

    def is_called(self, words: Sequence[str]) -> int | None:
        """Return the place in the list of the first word that the name has in it, or None."""
        name = self.name.casefold()
        return next((place for place, word in enumerate(words) if word in name), None)

    def holds_files(self, suffixes: Iterable[str]) -> bool:
        """Whether every value is the path of a file with one of these suffixes."""
        return bool(self.values) and all(PurePath(value).suffix.lower() in suffixes for value in self.values)


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Return what each column of a table holds, in the order of the table."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [_column(name, [row[name] for row in rows if name in row]) for name in names]


def _column(name: str, cells: Sequence[Any]) -> Column:
    filled = [_opened(cell, name) for cell in cells if not is_empty(cell)]
    texts, nested = list[str](), None
    for cell in filled:
        text = plain_text(cell)
        if text is not None:
            texts.append(composed(text).strip())
        elif nested is None:
            nested = cell
    length = sum(map(len, texts)) / len(texts) if texts else 0.0
    return Column(name, len(filled), Counter(texts), nested, length)


def _opened(cell: Any, name: str) -> Any:
    """Return a cell as it is read: bytes as text if they are, and conversations and choices in a text as what they are.

    Bytes that are no text, such as those of an image, stay.
    """
    if isinstance(cell, bytes):
        with contextlib.suppress(UserError):
            cell = decoded(cell, name)
    if not isinstance(cell, str):
        return cell
    if are_choices(name):
        value = parsed(cell)
        return cell if value == [cell] else value
    if cell.lstrip().startswith(("[", "{")):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(cell)
            return value if is_conversation(value) else cell
    return cell


def are_choices(name: str) -> bool:
    """Return whether a column with a name holds the choices of each row."""
    return any(word in name.casefold() for word in _CHOICES)


def is_conversation(cell: Any) -> bool:
    """Return whether a cell holds a conversation, as a list of messages or as an object with one."""
    if isinstance(cell, dict):
        cell = cast("dict[str, Any]", cell).get("messages")
    if not isinstance(cell, list) or not cell:
        return False
    first = cast("list[Any]", cell)[0]
    return isinstance(first, dict) and any(keys <= set(cast("dict[str, Any]", first)) for keys in _CONVERSATIONS)
