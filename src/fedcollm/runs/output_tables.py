"""Write the rows of a table with a model's predictions as further columns, in CSV, TSV, JSON lines or Parquet."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from fedcollm.errors import UserError
from fedcollm.modalities.predictions import Prediction
from fedcollm.storage import replacing, write_atomically

#: Columns that predictions add; the column of a choice's probability is `probability_` and the choice.
PREDICTION, PROBABILITY, PROBABILITIES, OBJECTS = "prediction", "probability", "probabilities", "objects"

#: Endings of files that spreadsheets open, and take cells in them for formulas that begin with one of these signs.
SPREADSHEETS, FORMULA = (".csv", ".tsv"), ("=", "+", "-", "@", "\t", "\r")

Row = dict[str, Any]


def with_predictions(
    rows: Sequence[Row], predictions: Sequence[Prediction], shared: Sequence[str], prefix: str = ""
) -> list[Row]:
    """Return rows with the columns that predictions add.

    >>> with_predictions([{"note": "x"}], [Prediction("a", {"a": 0.75, "b": 0.25})], ["a", "b"])
    [{'note': 'x', 'prediction': 'a', 'probability': 0.75, 'probability_a': 0.75, 'probability_b': 0.25}]

    Args:
        rows: the rows.
        predictions: the prediction of each row.
        shared: the choices that all rows have; if they have choices of their own, these are in one column.
        prefix: what the names of the added columns begin with.

    Raises:
        UserError: the rows have a column of such a name already.
    """
    added = [{f"{prefix}{name}": value for name, value in _added(one, shared).items()} for one in predictions]
    known = {name for row in rows for name in row}
    taken = sorted({name for row in added for name in row} & known)
    if taken:
        raise UserError(
            f"the table has a column {taken[0]!r} already. Give --prefix, such as --prefix new_, for other names of "
            "the columns that are added."
        )
    return [row | more for row, more in zip(rows, added, strict=True)]


def _added(one: Prediction, shared: Sequence[str]) -> Row:
    added: Row = {PREDICTION: one.text}
    if one.objects is not None:
        return added | {OBJECTS: [asdict(found) for found in one.objects]}
    if not one.probabilities:
        return added
    added[PROBABILITY] = one.probabilities[one.text]
    if shared:
        return added | {f"{PROBABILITY}_{choice}": one.probabilities[choice] for choice in shared}
    return added | {PROBABILITIES: dict(one.probabilities)}


def without_formulas(rows: Sequence[Row], prefix: str = "") -> tuple[list[Row], int]:
    """Return rows for a file that a spreadsheet opens, in which no prediction is a formula, and how many were.

    A choice comes from whoever made the run, and an answer from a model: a quote before it makes it text. The table's
    own columns are kept as they are, and so are numbers.

    >>> without_formulas([{"note": "=1", "prediction": "=1+1"}, {"note": "b", "prediction": "-5"}])
    ([{'note': '=1', 'prediction': "'=1+1"}, {'note': 'b', 'prediction': '-5'}], 1)

    Args:
        rows: as `with_predictions` returns them.
        prefix: what the names of the added columns begin with.
    """
    name = f"{prefix}{PREDICTION}"
    changed = [row | {name: f"'{row[name]}"} if _is_formula(str(row[name])) else row for row in rows]
    return changed, sum(one is not row for one, row in zip(changed, rows, strict=True))


def _is_formula(text: str) -> bool:
    """Return whether a spreadsheet would compute a cell; a sign alone, such as a label +, and a number are safe."""
    if not text.startswith(FORMULA) or not text[1:].strip():
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


def check_output(path: Path) -> None:
    """Refuse a file that can't be written before anything is computed.

    Raises:
        UserError: its ending is unknown, its directory is missing, or it exists already.
    """
    if path.suffix.lower() not in _WRITERS:
        raise UserError(f"--out: {path} has an unknown ending. Known endings: {', '.join(_WRITERS)}.")
    if path.exists() or path.is_symlink():
        raise UserError(f"--out: {path} exists already. Give another file, or remove it.")
    if not path.parent.is_dir():
        raise UserError(f"--out: there is no directory {path.parent}. Create it, or give another file.")


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write rows, all of whose columns are kept, as the ending of a file says; lists and objects become JSON in CSV.

    Raises:
        UserError: the format can't hold a value.
        OSError: the file can't be written.
    """
    _WRITERS[path.suffix.lower()](path, rows)


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _write_csv(path: Path, rows: Sequence[Row], delimiter: str = ",") -> None:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, _columns(rows), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(name, value) for name, value in row.items()} for row in rows)
    write_atomically(path, stream.getvalue())


def _cell(name: str, value: Any) -> Any:
    if isinstance(value, float):
        return repr(value)
    return value if value is None or isinstance(value, str | int) else _json(name, value)


def _write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    lines = ("{" + ", ".join(f"{json.dumps(k)}: {_json(k, v)}" for k, v in row.items()) + "}\n" for row in rows)
    write_atomically(path, "".join(lines))


def _json(name: str, value: Any) -> str:
    """Return a value as JSON; dates and decimal numbers of Parquet become text."""
    parts = cast("dict[str, Any]", value).values() if isinstance(value, dict) else (value,)
    if any(isinstance(part, bytes) for part in parts):
        raise UserError(
            f"--out: column {name!r} holds bytes, which only Parquet can hold. Give a file that ends in .parquet."
        )
    return json.dumps(value, ensure_ascii=False, default=str)


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow  # pyright: ignore[reportMissingTypeStubs]
    from pyarrow import parquet  # pyright: ignore[reportMissingTypeStubs]

    library: Any = pyarrow
    columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in _columns(rows)}
    if PROBABILITIES in columns:  # objects whose keys differ by row
        columns[PROBABILITIES] = [_json(PROBABILITIES, value) for value in columns[PROBABILITIES]]
    try:
        table = library.table(columns)
    except (library.ArrowInvalid, library.ArrowTypeError, OverflowError) as error:
        raise UserError(
            f"--out: a column has values that one column of Parquet can't hold ({error}). Give a file that ends in "
            ".jsonl."
        ) from error
    with replacing(path) as temporary:
        parquet.write_table(table, str(temporary))  # pyright: ignore[reportUnknownMemberType]


#: Ending of a file to what writes it.
_WRITERS: Mapping[str, Callable[[Path, Sequence[Row]], None]] = {
    ".csv": _write_csv,
    ".tsv": lambda path, rows: _write_csv(path, rows, "\t"),
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
