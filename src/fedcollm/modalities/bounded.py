"""Read files within bounds: a small compressed file can hold more than any memory, and a table any number of rows.

Images and recordings, whose bounds are in pixels and seconds, have them in `vision/images.py` and
`audio/recordings.py`; messages, in `transports/wire.py`.
"""

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from fedcollm.errors import UserError

T = TypeVar("T")

#: Largest size of the content of a file, decompressed, in bytes.
MOST_BYTES = 2**31

#: Largest number of rows of a file.
MOST_ROWS = 10_000_000

_BLOCK = 2**20  # bytes that are decompressed at once


def _zstandard(file: IO[bytes]) -> Any:
    import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]

    return cast("Any", pa).CompressedInputStream(file, "zstd")


#: Ending of a compressed file to what opens the stream of its decompressed bytes.
COMPRESSIONS: Mapping[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".zst": _zstandard,
}


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file, decompressed if its ending says that they are compressed.

    Raises:
        UserError: the file can't be read, or holds more than `MOST_BYTES`.
    """
    try:
        with path.open("rb") as file:
            opened = COMPRESSIONS.get(path.suffix.lower())
            return b"".join(_blocks(path, opened(file) if opened else file))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Check task.path.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: can't be read ({error}). Check that the file is complete and that you have permission to read it."
        ) from None


def _blocks(path: Path, stream: Any) -> Iterator[bytes]:
    size = 0
    while block := cast("bytes", stream.read(_BLOCK)):
        size += len(block)
        check_size(path, size)
        yield block


def check_size(path: Path, size: int) -> None:
    """Refuse a file whose content is larger than `MOST_BYTES`, as far as it is known.

    Raises:
        UserError: it is.
    """
    if size > MOST_BYTES:
        raise UserError(
            f"{path}: holds more than {MOST_BYTES:,} bytes once it is decompressed, and no more are read. Split it "
            "into several files, or give fewer rows."
        )


def bounded_rows(path: Path, rows: Iterable[T]) -> Iterator[T]:
    """Yield the rows of a file.

    Raises:
        UserError: there are more than `MOST_ROWS`.
    """
    for number, row in enumerate(rows, start=1):
        if number > MOST_ROWS:
            raise UserError(
                f"{path}: has more than {MOST_ROWS:,} rows, and no more are read. Split it into several files, or give "
                "a sample of its rows."
            )
        yield row
