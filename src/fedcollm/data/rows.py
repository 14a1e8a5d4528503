"""Read the rows of a part of the data: all its files, checked, with the rows that have an answer."""

import codecs
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedcollm.config import FormatConfig
from fedcollm.data.cells import cell_text, check_columns
from fedcollm.data.tables import Reading, file_rows, is_text
from fedcollm.errors import UserError
from fedcollm.modalities.base import Example

#: Column of the ids, which the data may have.
ID = "id"


class Row(NamedTuple):
    """A row of the data.

    Attributes:
        file: the file.
        position: its number in its part, from 1, over all files.
        place: its file and line or row, for messages.
        cells: column to value.
    """

    file: Path
    position: int
    place: str
    cells: dict[str, Any]

    @property
    def id(self) -> str:
        """What the row has in the column `id`, or else its position."""
        return cell_text(self.cells, ID, self.place, ID) if ID in self.cells else str(self.position)


def part_rows(files: Sequence[Path], format: FormatConfig, asked: Sequence[tuple[str, str]]) -> list[Row]:
    """Return the rows of a part.

    Args:
        files: its files, in their order.
        format: how text files are encoded, and what separates their fields.
        asked: names of the columns that are needed, each with the key of the configuration that names it.

    Raises:
        UserError: a file can't be read, has no rows, or lacks a column.
    """
    reading = Reading(format.encoding, format.delimiter, tuple(column for column, _ in asked))
    rows: list[Row] = []
    for file in files:
        found = _file_rows(file, reading, asked)
        rows += [Row(file, position, *pair) for position, pair in enumerate(found, start=len(rows) + 1)]
    return rows


def _file_rows(file: Path, reading: Reading, asked: Sequence[tuple[str, str]]) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of a file; a fault that a wrong encoding may have is said to be possibly one."""
    try:
        found = list(file_rows(file, reading))
        if not found:
            raise UserError(f"{file} has no rows. Add some, or set task.path to another file.")
        check_columns([cells for _, cells in found], asked, str(file))
    except UserError as error:
        key = "task.format.encoding"
        if key in str(error) or not is_text(file) or codecs.lookup(reading.encoding).name == "utf-8":
            raise
        raise UserError(f"{error} Or correct {key}, if the file is not in {reading.encoding}.") from None
    return found


def with_answers(
    rows: Sequence[Row], is_answered: Callable[[Row], bool], what: str, skip: bool, files: Sequence[Path]
) -> tuple[list[Row], list[str]]:
    """Return the rows that have an answer, and a note if others are left out.

    Args:
        rows: the rows of a part.
        is_answered: returns whether a row has an answer.
        what: the column of the answer and the key that names it, for messages.
        skip: `task.format.skip_unanswered`: whether to leave out rows without an answer instead of refusing them.
        files: the files of the part, for the note.

    Raises:
        UserError: a row has no answer and is not to be left out, or no row has one.
    """
    kept = [row for row in rows if _is_kept(row, is_answered, what, skip)]
    if not kept:
        raise UserError(f"{named(files)}: no row has an answer ({what}). Give the right column.")
    missing = len(rows) - len(kept)
    note = f"{named(files)}: {missing:,} of {len(rows):,} rows have no answer ({what}) and are left out"
    return kept, [note] if missing else []


def _is_kept(row: Row, is_answered: Callable[[Row], bool], what: str, skip: bool) -> bool:
    if is_answered(row):
        return True
    if not skip:
        raise UserError(
            f"{row.place}: {what} is empty. Fill it in, remove the row, or set task.format.skip_unanswered: true to "
            "leave out all rows without an answer."
        )
    return False


def named(files: Sequence[Path]) -> str:
    """Return the names of the files of a part, in short.

    >>> named([Path("x/train-0.csv"), Path("x/train-1.csv")])
    'train-0.csv and 1 more'
    """
    return files[0].name + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def check_ids(examples: Iterable[Example], places: Iterable[str]) -> None:
    """Check that the ids of examples are distinct.

    Args:
        examples: the examples, in the order of their file.
        places: file and line of each example, for the message.

    Raises:
        UserError: two examples have the same id.
    """
    first: dict[str, str] = {}
    for example, place in zip(examples, places, strict=True):
        if example.id in first:
            raise UserError(
                f"{place}: id {example.id!r} is already used in {first[example.id]}. Give each row its own id."
            )
        first[example.id] = place


def label_notes(labels: Iterable[str]) -> Iterator[str]:
    """Yield a note about labels that differ only by case or white space, which are different labels.

    >>> list(label_notes(["flu", "Flu", "cold"]))
    ["the labels 'Flu' and 'flu' differ only by case or white space, and count as different labels"]
    """
    alike: dict[str, set[str]] = defaultdict(set)
    for label in labels:
        alike["".join(label.casefold().split())].add(label)
    for group in alike.values():
        if len(group) > 1:
            names = " and ".join(map(repr, sorted(group)))
            yield f"the labels {names} differ only by case or white space, and count as different labels"
