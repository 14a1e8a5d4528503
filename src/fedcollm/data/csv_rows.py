"""Read rows from CSV and TSV, with any delimiter, as RFC 4180 describes them; lines may end with LF, CR LF or CR.

Quotes are signs like others in a table with tabs where every line has a field for each column if they are, and where
they would otherwise be wrong or put tabs and the end of a line into one field: so are texts written that are no CSV.
"""

import contextlib
import csv
import io
import itertools
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import shorten

#: Delimiters that are tried, in this order: the first one under which the header has most of the named columns, or of
#: several the one under which the rows are as long as the header, or else the one under which it has most columns.
DELIMITERS = (",", ";", "\t", "|")

#: Number of rows by which a delimiter is judged.
_JUDGED = 50

#: Line before the header by which Excel names the delimiter.
_NAMED_DELIMITER = re.compile(r"sep=([^\r\n\"])(?:\r\n|\n|\r)")

#: Text in quotes with a quote in it, which is written twice.
_ESCAPED = re.compile(r'"[^"]*""[^"]*.*"')

Placed = tuple[str, dict[str, Any]]
Quoting = Literal[0, 3]

#: Largest field that the csv module can be told to read, on any platform.
_LARGEST_FIELD = 2**31 - 1
_limit_lock = threading.Lock()


def csv_rows(text: str, path: Path, delimiter: str | None, columns: Sequence[str]) -> list[Placed]:
    """Return each row of a CSV file after its place, which is the file and the line where the row begins.

    Blank lines are skipped. White space around the names in the header is removed, and columns without a name are left
    out.

    Args:
        text: the content of the file.
        path: the file, for messages; in a `.tsv` file, a tab is tried first.
        delimiter: what separates fields; None to find it, or to take the one that a line `sep=;` of Excel names.
        columns: the columns that are needed, by which a delimiter is found.

    Raises:
        UserError: the text is not CSV.
    """
    with _fields_of_any_length():
        first = None if delimiter else _NAMED_DELIMITER.match(text)
        if first is not None:
            return _table(text[first.end() :], path, first[1], 2)
        return _table(text, path, delimiter or _delimiter(text, path, columns), 1)


def _table(text: str, path: Path, delimiter: str, first: int) -> list[Placed]:
    """Return the rows of a text that begins in line `first` of the file, with quotes read as this module says."""
    if delimiter != "\t" or '"' not in text:
        return list(_rows(text, path, delimiter, first))
    plain = _unquoted(text, path, first)
    try:
        rows = list(_rows(text, path, delimiter, first))
    except UserError:
        if plain is None:
            raise
        return plain
    merged = any("\t" in field and ("\n" in field or "\r" in field) for _, row in rows for field in row.values())
    return plain if merged and plain is not None else rows


def _unquoted(text: str, path: Path, first: int) -> list[Placed] | None:
    """Return the rows of a text with tabs in which quotes mean nothing; None if they seem to mean something."""
    try:
        rows = list(_rows(text, path, "\t", first, csv.QUOTE_NONE))
    except UserError:
        return None
    names = rows[0][1] if rows else ()
    fields = (field for _, row in rows for field in row.values())
    is_quoted = any(name.startswith('"') for name in names) or any(map(_ESCAPED.fullmatch, fields))
    return None if is_quoted else rows


def _rows(text: str, path: Path, delimiter: str, first: int, quoting: Quoting = csv.QUOTE_MINIMAL) -> Iterator[Placed]:
    """Yield the rows of a text that begins in line `first` of the file."""
    line, header = first, None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, quoting=quoting)
    try:
        for fields in reader:
            if not fields or fields == [""]:  # a blank line
                pass
            elif header is None:
                header = _checked(fields, path, line)
            elif len(fields) != len(header):
                raise UserError(
                    f"{path}, line {line}: {len(fields)} field{'s' * (len(fields) != 1)}, but the header has "
                    f"{len(header)}. Put quotes around text that contains {_spoken(delimiter)}."
                )
            else:
                yield f"{path}, line {line}", {name: field for name, field in zip(header, fields, strict=True) if name}
            line = reader.line_num + first
    except csv.Error as error:
        reason = "a quote is not closed" if "end of data" in str(error) else str(error)
        raise UserError(
            f"{path}, line {line}: can't be read as CSV ({reason}). Correct the quotes of this row: a text in quotes "
            "ends with a quote, and a quote inside of it is written twice."
        ) from None


def _checked(names: list[str], path: Path, line: int) -> list[str]:
    names = [unicodedata.normalize("NFC", name.strip()) for name in names]
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise UserError(
            f"{path}, line {line}: the header has column {shorten(twice[0])} twice. Give each column its own name."
        )
    return names


def _delimiter(text: str, path: Path, columns: Sequence[str]) -> str:
    """Return the first delimiter under which the header has most of the columns, and the rows are as long as it."""
    signs = sorted(DELIMITERS, key=lambda sign: sign != "\t") if ".tsv" in path.name.lower() else DELIMITERS
    needed = {unicodedata.normalize("NFC", name) for name in columns}
    return max(signs, key=lambda sign: _fitness(text, sign, needed))


def _fitness(text: str, delimiter: str, needed: set[str]) -> tuple[int, bool, int]:
    """Return how many columns that are needed the header has, whether the rows fit it, and how many columns it has."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[list[str]] = []
    with contextlib.suppress(csv.Error):
        rows.extend(itertools.islice((fields for fields in reader if fields and fields != [""]), _JUDGED))
    header = rows[0] if rows else []
    names = {unicodedata.normalize("NFC", name.strip()) for name in header}
    return len(needed & names), len(header) > 1 and all(len(fields) == len(header) for fields in rows), len(header)


def _spoken(delimiter: str) -> str:
    return {",": "commas", ";": "semicolons", "\t": "tabs"}.get(delimiter, repr(delimiter))


@contextlib.contextmanager
def _fields_of_any_length() -> Generator[None, None, None]:
    """Lift the csv module's limit of 131,072 characters per field, which is one for the whole process, for a while."""
    with _limit_lock:
        before = csv.field_size_limit(_LARGEST_FIELD)
        try:
            yield
        finally:
            csv.field_size_limit(before)
