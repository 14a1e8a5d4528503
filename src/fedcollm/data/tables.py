"""Read the rows of a table, whatever its format: the one table of endings and readers."""

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedcollm.data.arrow_rows import arrow_rows, parquet_rows
from fedcollm.data.content import decode
from fedcollm.data.csv_rows import csv_rows
from fedcollm.data.json_rows import json_rows
from fedcollm.errors import UserError
from fedcollm.modalities.bounded import COMPRESSIONS, bounded_rows, read_bytes

Placed = tuple[str, dict[str, Any]]


class Reading(NamedTuple):
    """How text files are read.

    Attributes:
        encoding: name of their encoding.
        delimiter: what separates the fields of CSV files; None to find it.
        columns: columns that are needed, by which a delimiter is found.
    """

    encoding: str = "utf-8"
    delimiter: str | None = None
    columns: Sequence[str] = ()


_DEFAULT = Reading()

#: Ending to what reads the rows of a text file, given its text.
_TEXT_READERS: Mapping[str, Callable[[str, Path, Reading], Iterator[Placed] | list[Placed]]] = {
    **dict.fromkeys((".jsonl", ".ndjson"), lambda text, path, reading: json_rows(text, path, by_line=True)),
    ".json": lambda text, path, reading: json_rows(text, path, by_line=False),
    **dict.fromkeys(
        (".csv", ".tsv"), lambda text, path, reading: csv_rows(text, path, reading.delimiter, reading.columns)
    ),
}

#: Ending to what reads the rows of a binary file.
_BINARY_READERS: Mapping[str, Callable[[Path], Iterator[Placed]]] = {".parquet": parquet_rows, ".arrow": arrow_rows}

#: All endings of tables.
ENDINGS = (
    *_TEXT_READERS,
    *(ending + packed for ending in _TEXT_READERS for packed in COMPRESSIONS),
    *_BINARY_READERS,
)

#: The endings in words.
KNOWN = f"{', '.join(_TEXT_READERS)} (also with {' or '.join(COMPRESSIONS)} after it), {' and '.join(_BINARY_READERS)}"


def ending_of(path: Path) -> str:
    """Return the ending of a table, in lower case; an empty text if the file is none.

    >>> ending_of(Path("Train.CSV.gz")), ending_of(Path("notes.txt"))
    ('.csv.gz', '')
    """
    name = path.name.lower()
    return max((ending for ending in ENDINGS if name.endswith(ending) and name != ending), key=len, default="")


def is_text(path: Path) -> bool:
    """Return whether a table is a text file, possibly compressed.

    >>> is_text(Path("a.csv.gz")), is_text(Path("a.parquet"))
    (True, False)
    """
    return ending_of(path) not in ("", *_BINARY_READERS)


def file_rows(path: Path, reading: Reading = _DEFAULT) -> Iterator[Placed]:
    """Yield each row of a file after its place (file and line or row), for messages.

    Names of columns are in Unicode NFC.

    Args:
        path: a file with one of the `ENDINGS`.
        reading: how it is read if it is text.

    Raises:
        UserError: the file can't be read, a line is invalid, or it holds more than `modalities/bounded.py` allows.
    """
    ending = ending_of(path)
    if not ending:
        raise UserError(f"task.path: {path} has an unknown ending. Known endings: {KNOWN}.")
    if ending in _BINARY_READERS:
        rows = _BINARY_READERS[ending](path)
    else:
        text = decode(read_bytes(path), reading.encoding, path)
        packed = next((packed for packed in COMPRESSIONS if ending.endswith(packed)), "")
        rows = _TEXT_READERS[ending.removesuffix(packed)](text, path, reading)
    for place, row in bounded_rows(path, rows):
        yield place, row if all(map(str.isascii, row)) else _composed(row, place)


def _composed(row: dict[str, Any], place: str) -> dict[str, Any]:
    composed = {unicodedata.normalize("NFC", name): value for name, value in row.items()}
    if len(composed) < len(row):
        raise UserError(f"{place}: two columns differ only by the Unicode form of their name. Rename one of them.")
    return composed
