"""Read rows from Parquet and from Arrow, as pandas, Spark, BigQuery and the library `datasets` write them."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import numpy as np

from fedcollm.errors import UserError
from fedcollm.modalities.bounded import check_size
from fedcollm.modalities.jsonl import shorten

#: The schema of a table and its batches, as long as its file is open.
_Opened = AbstractContextManager[tuple[Any, Iterable[Any]]]

#: First bytes of an Arrow file that can be read in any order; one without them is a stream.
_FILE_MAGIC = b"ARROW1"

_AT_ONCE = 10_000  # rows

#: Arrow's name of a type of floats to numpy's, for those with fewer digits than Python's.
_SHORT_FLOATS = {"halffloat": "float16", "float": "float32"}


def parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row of a Parquet file after its place, which is the file and the number of the row.

    Raises:
        UserError: the file can't be read, or holds more than `modalities/bounded.py` allows.
    """
    return _rows(path, *_read(path, "Parquet", _parquet))


def arrow_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row of an Arrow file, a stream or not; see `parquet_rows`.

    Raises:
        UserError: as `parquet_rows`.
    """
    return _rows(path, *_read(path, "Arrow", _arrow))


@contextlib.contextmanager
def _parquet(path: Path) -> Generator[tuple[Any, Iterable[Any]], None, None]:
    from pyarrow import parquet  # pyright: ignore[reportMissingTypeStubs]

    with cast("Any", parquet).ParquetFile(path) as file:
        yield file.schema_arrow, file.iter_batches(_AT_ONCE)


@contextlib.contextmanager
def _arrow(path: Path) -> Generator[tuple[Any, Iterable[Any]], None, None]:
    from pyarrow import ipc  # pyright: ignore[reportMissingTypeStubs]

    library: Any = ipc
    with path.open("rb") as file:
        is_file = file.read(len(_FILE_MAGIC)) == _FILE_MAGIC
        file.seek(0)
        opened = (library.open_file if is_file else library.open_stream)(file)
        yield opened.schema, map(opened.get_batch, range(opened.num_record_batches)) if is_file else opened


def _read(path: Path, kind: str, opened: Callable[[Path], _Opened]) -> tuple[Any, list[Any]]:
    """Return the schema of a table and its batches, which are decompressed one after the other within the bounds."""
    size = 0
    batches: list[Any] = []
    try:
        with opened(path) as (schema, found):
            for batch in found:
                size += batch.nbytes
                check_size(path, size)
                batches.append(batch)
    except UserError:
        raise
    except Exception as error:  # pyarrow raises many kinds
        raise UserError(f"{path}: can't be read as {kind} ({_first_line(error)}). Check that it is complete.") from None
    return schema, batches


def _rows(path: Path, schema: Any, batches: Iterable[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    names: list[str] = list(schema.names)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{path}: there are two columns {shorten(twice[0])}. Give each column its own name.")
    done, classes = 0, _class_names(schema)
    types = {field.name: str(field.type) for field in schema}
    floats = {name: _SHORT_FLOATS[kind] for name, kind in types.items() if kind in _SHORT_FLOATS}
    try:
        for part in (batch.slice(start, _AT_ONCE) for batch in batches for start in range(0, batch.num_rows, _AT_ONCE)):
            for row in part.to_pylist():
                done += 1
                yield f"{path}, row {done}", _plain(row, classes, floats, f"{path}, row {done}")
    except UserError:
        raise
    except Exception as error:  # a time beyond Python's years, an unknown time zone, bytes that are not UTF-8, ...
        raise UserError(
            f"{path}: row {done + 1} or one soon after it can't be read ({_first_line(error)}). Correct the column, "
            "or save it as text."
        ) from None


def _plain(row: dict[str, Any], classes: dict[str, list[str]], floats: dict[str, str], place: str) -> dict[str, Any]:
    """Return a row with the names of classes for their numbers, and short floats as they were written."""
    for column, names in classes.items():
        row[column] = _class_name(row[column], names, f"{place}: column {column!r}")
    for column, kind in floats.items():
        row[column] = _short(row[column], kind)
    return row


def _class_name(value: Any, names: list[str], what: str) -> str | None:
    """Return the name of a class; None for -1, by which `datasets` means no class."""
    if value is None or value == -1:
        return None
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise UserError(
            f"{what} holds {shorten(value)}, but its {len(names)} classes have the numbers from 0. Correct it."
        )
    return names[value]


def _short(value: float | None, kind: str) -> float | None:
    """Return a float of 16 or 32 bits as the shortest number that stands for it: 0.1 instead of 0.10000000149."""
    return None if value is None else float(str(np.dtype(kind).type(value)))


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Return the names of the classes of each column that `datasets` calls a ClassLabel."""
    try:
        metadata: dict[bytes, bytes] = schema.metadata or {}
        content = json.loads(metadata.get(b"huggingface", b"{}"))
        features = content["info"]["features"].items()
        labels = {name: one["names"] for name, one in features if one.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # not what `datasets` writes
        return {}
    return {name: list(map(str, names)) for name, names in labels.items() if name in schema.names}


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
