"""Write findings as a table, and apply the fixes of that table to a copy of the data.

Every fix stands in `findings.csv` with the value before and after it. Whoever wants only some deletes the other lines.
The copy stands beside the data, which is never touched, and `changes.csv` lists every change with what was there.
"""

import csv
import io
import itertools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedcollm.config import FormatConfig
from fedcollm.data.audit.findings import Finding, Subject
from fedcollm.data.audit.reading import needed_columns
from fedcollm.data.cells import composed, is_empty, plain_text
from fedcollm.data.tables import Reading, ending_of, file_rows
from fedcollm.errors import UserError
from fedcollm.storage import make_directory, write_atomically

_COLUMNS = ("kind", "file", "row", "action", "column", "before", "after", "score", "detail")
_CHANGES = ("file", "row", "action", "column", "before", "after")

#: Signs with which a cell is a formula for a spreadsheet; a quote before them makes it text.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")

#: The number of a row as an audit writes it.
_ROW = re.compile("[0-9]{1,12}")


class Change(NamedTuple):
    """A change of the data.

    Attributes:
        file: the table or the file, relative to the data's folder.
        row: number of the row in its table, from 1; 0 for a file.
        action: `drop` or `set`.
        column: the column that is set; empty for the folder of a file.
        before: the value before, or the whole row as JSON if it is dropped.
        after: the value after; empty if the row or file is dropped.
    """

    file: str
    row: int
    action: str
    column: str
    before: str
    after: str


def findings_csv(root: Path, subject: Subject, findings: Sequence[Finding]) -> str:
    """Return findings as CSV, each with its fix if there is one.

    Args:
        root: the data, or the folder of it if it is a single table.
        subject: the data.
        findings: what was found in it.
    """
    lines: list[tuple[object, ...]] = []
    for one in findings:
        record, fix = subject.records[one.record], one.fix
        column = "" if fix is None else fix.column
        before = (record.label or "") if fix and not record.row else _cell(record.raw, column)
        name = record.file.relative_to(root).as_posix()
        action, after = ("", "") if fix is None else (fix.action, fix.value)
        lines.append((one.kind, name, record.row, action, column, before, after, f"{one.score:.3f}", one.detail))
    return _csv(_COLUMNS, lines)


def _cell(raw: Mapping[str, Any], column: str) -> str:
    value = raw.get(composed(column))
    return "" if is_empty(value) else plain_text(value) or ""


def _csv(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_quoted(str(value)) for value in line] for line in lines)
    return stream.getvalue()


def _quoted(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _unquoted(text: str) -> str:
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULA) else text


def read_fixes(path: Path) -> list[Change]:
    """Return the fixes of a table that `findings_csv` made, possibly with fewer lines.

    Two fixes of one cell are for two audits: the first one counts. A row that is dropped is not changed as well.

    Raises:
        UserError: the table can't be read, or is no table of findings.
    """
    found: dict[tuple[str, int, str], Change] = {}
    for place, raw in file_rows(path, Reading(columns=_COLUMNS)):
        if not set(_COLUMNS) <= raw.keys():
            raise UserError(f"{place}: this is no table of findings. Give the findings.csv that `audit --out` wrote.")
        row = {name: _unquoted(str(raw[name])) for name in _COLUMNS}
        if row["action"] == "":
            continue
        if row["action"] not in ("drop", "set") or not _ROW.fullmatch(row["row"]):
            raise UserError(
                f"{place}: action {row['action']!r:.100} in row {row['row']!r:.100} is none that an "
                "audit proposes. Delete the line, or write drop or set, and the number of a row."
            )
        change = Change(row["file"], int(row["row"]), row["action"], row["column"], row["before"], row["after"])
        found.setdefault((change.file, change.row, "" if change.action == "drop" else change.column or "/"), change)
    dropped = {(file, row) for file, row, column in found if column == ""}
    return [one for one in found.values() if one.action == "drop" or (one.file, one.row) not in dropped]


def copy_of(path: Path) -> Path:
    """Return where the cleaned copy of the data stands: beside it, in a format that is written.

    >>> copy_of(Path("notes.csv.gz")).name, copy_of(Path("photos")).name
    ('notes-clean.csv', 'photos-clean')
    """
    if path.name in ("", ".."):  # such as the directory that one is in
        path = Path(os.path.abspath(path))
    ending = ending_of(path) if not path.is_dir() else ""
    return path.with_name(f"{path.name[: len(path.name) - len(ending)]}-clean{_WRITTEN_AS.get(ending, '')}")


def apply(path: Path, form: FormatConfig, fixes: Sequence[Change]) -> tuple[Path, list[Change]]:
    """Write a copy of the data with fixes, and return its place and what was changed.

    Args:
        path: the data: a table, or a directory.
        form: how its tables are read.
        fixes: as `read_fixes` returns them.

    Raises:
        UserError: the copy is there already, or the data is not the one of the findings any more.
        OSError: the copy can't be written.
    """
    out, changes = copy_of(path), list[Change]()
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} is there already. Remove it, or move it away, before fixes are applied again.")
    by_file: dict[str, list[Change]] = {}
    for fix in fixes:
        by_file.setdefault(fix.file, []).append(fix)
    if not path.is_dir():
        _check_known(by_file, {path.name}, path)
        content, changes = _changed_table(path, path.name, form, by_file.get(path.name, []))
        _write(out, content)
        return out, changes
    root = path.resolve()
    files = (one for one in sorted(path.rglob("*")) if one.is_file() and one.resolve().is_relative_to(root))
    names = {file.relative_to(path).as_posix(): file for file in files}
    _check_known(by_file, names.keys(), path)
    targets = _targets(names, by_file, path)
    try:
        make_directory(out)
        for name, file in names.items():
            target = out / targets[name] if name in targets else None
            changes += _copied(file, name, form, by_file.get(name, []), target)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)  # half a copy is none
        raise
    return out, changes


def _copied(file: Path, name: str, form: FormatConfig, fixes: Sequence[Change], target: Path | None) -> list[Change]:
    """Write one file of a directory with its fixes, and return what was changed.

    Args:
        file: the file.
        name: its name within the directory.
        form: how tables are read.
        fixes: its fixes.
        target: where it goes; None if it is left out.
    """
    if target is None:
        return [one for one in fixes if one.action == "drop"]
    make_directory(target.parent)
    if fixes and fixes[0].row:
        content, made = _changed_table(file, name, form, fixes)
        _write(target, content)
        return made
    shutil.copy2(file, target)
    return list(fixes[:1])


def _targets(names: Iterable[str], by_file: Mapping[str, Sequence[Change]], path: Path) -> dict[str, Path]:
    """Return where each file of a directory goes within the copy; files that are left out have no entry.

    An image that moves to another class, which has one of the same name, gets a number.

    Raises:
        UserError: two files would have one name, or a folder has a name that it can't have.
    """
    targets: dict[str, Path] = {}
    moved: dict[str, Path] = {}
    for name in names:
        own, place = by_file.get(name, ()), Path(name)
        if own and own[0].row:
            ending = ending_of(place)
            targets[name] = place.with_name(
                place.name[: len(place.name) - len(ending)] + _WRITTEN_AS.get(ending, ending)
            )
        elif not own:
            targets[name] = place
        elif not any(one.action == "drop" for one in own):
            _check_folder(own[0].after, place, path)
            moved[name] = place.parent.with_name(own[0].after) / place.name
    counts = Counter(targets.values())
    if twice := next((one for one, count in counts.items() if count > 1), None):
        raise UserError(f"{path}: two files would be {twice} in the copy. Rename one of them.")
    return targets | _freed(moved, {str(one).casefold() for one in targets.values()})


def _freed(moved: Mapping[str, Path], taken: set[str]) -> dict[str, Path]:
    """Return where moved images go, each with the first number that makes its name a new one."""
    found: dict[str, Path] = {}
    for name, place in moved.items():
        numbered = (place.with_stem(f"{place.stem}-{i}") for i in itertools.count(2))
        tried = itertools.chain((place,), numbered)
        found[name] = next(one for one in tried if str(one).casefold() not in taken)
        taken.add(str(found[name]).casefold())
    return found


def _check_folder(name: str, place: Path, path: Path) -> None:
    if not place.parent.name:
        raise UserError(f"{path}: {place.name} is in no class folder, so that it has no other one. Delete the finding.")
    if not name or Path(name).name != name or name == ".." or not name.isprintable() or len(os.fsencode(name)) > 255:
        raise UserError(
            f"{path}: {name!r:.300} can't be the name of a class folder. Correct the column after of the finding."
        )


def _check_known(by_file: Mapping[str, Any], names: Any, path: Path) -> None:
    odd = next((name for name in by_file if name not in names), None)
    if odd is not None:
        raise UserError(f"{path} has no file {odd!r}, which a finding names. Give the findings of this data.")


def _changed_table(
    file: Path, name: str, form: FormatConfig, fixes: Sequence[Change]
) -> tuple[list[Any], list[Change]]:
    """Return the rows of a table after the fixes, and what was changed."""
    dropped = {one.row for one in fixes if one.action == "drop"}
    values = {(one.row, composed(one.column)): one for one in fixes if one.action == "set"}
    kept: list[dict[str, Any]] = []
    changes: list[Change] = []
    number = 0
    needed = tuple(column for column, _ in needed_columns(form))
    for number, (place, row) in enumerate(file_rows(file, Reading(form.encoding, form.delimiter, needed)), start=1):
        if number in dropped:
            whole = json.dumps(row, ensure_ascii=False, default=str)
            changes.append(Change(name, number, "drop", "", whole, ""))
            continue
        for (at, column), one in values.items():
            if at == number:
                if _cell(row, column) != one.before:
                    raise UserError(
                        f"{place}: column {column!r} does not hold {one.before!r:.100} any more. Audit the data again."
                    )
                changes.append(Change(name, number, "set", column, one.before, one.after))
                row = row | {column: one.after}
        kept.append(row)
    if beyond := next((one.row for one in fixes if not 1 <= one.row <= number), None):
        raise UserError(f"{file} has {number} rows, and a finding is about row {beyond}. Audit the data again.")
    return kept, changes


def changes_csv(changes: Sequence[Change]) -> str:
    """Return changes as CSV: with the original, which is kept, they say what was done, and how to undo each."""
    return _csv(_CHANGES, changes)


def _write(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    _WRITERS[out.suffix.lower()](out, rows)


def _write_lines(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_atomically(out, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


def _write_separated(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    stream = io.StringIO(newline="")
    names = list(dict.fromkeys(name for row in rows for name in row))
    delimiter = "\t" if out.suffix.lower() == ".tsv" else ","
    writer = csv.DictWriter(stream, names, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(out, stream.getvalue())


def _write_parquet(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    import pyarrow  # pyright: ignore[reportMissingTypeStubs]
    from pyarrow import parquet  # pyright: ignore[reportMissingTypeStubs]

    from fedcollm.storage import replacing

    library: Any = pyarrow
    with replacing(out) as temporary:
        parquet.write_table(library.Table.from_pylist(list(rows)), str(temporary))  # pyright: ignore


#: Ending of a table to that of its copy.
_WRITTEN_AS: Mapping[str, str] = {
    **{f".csv{packed}": ".csv" for packed in ("", ".gz", ".zst")},
    **{f".tsv{packed}": ".tsv" for packed in ("", ".gz", ".zst")},
    **{f"{kind}{packed}": ".jsonl" for kind in (".jsonl", ".ndjson", ".json") for packed in ("", ".gz", ".zst")},
    ".parquet": ".parquet",
    ".arrow": ".parquet",
}

_WRITERS: Mapping[str, Callable[[Path, Sequence[dict[str, Any]]], None]] = {
    ".csv": _write_separated,
    ".tsv": _write_separated,
    ".jsonl": _write_lines,
    ".parquet": _write_parquet,
}
