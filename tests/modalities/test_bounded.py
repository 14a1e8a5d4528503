"""Files that hold more than any memory: what is read of them, and what is said."""

import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from fedcollm.data.tables import file_rows
from fedcollm.errors import UserError
from fedcollm.modalities import bounded
from fedcollm.modalities.jsonl import read_jsonl

COUNT = 2000
LINES = b'{"a": "xxxxxxxxxx"}\n' * COUNT
TABLE = pa.table({"a": ["xxxxxxxxxx"] * COUNT})  # 28,000 bytes in memory


def _packed(path: Path, content: bytes) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(content)


def _arrow(path: Path) -> None:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(path, TABLE.schema, options=options) as sink:
        sink.write_table(TABLE, max_chunksize=500)


WRITE: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "a.jsonl.zst": lambda path: _packed(path, LINES),
    "a.json": lambda path: path.write_bytes(b"[" + LINES.replace(b"\n", b",") + b"{}]"),
    "a.csv.gz": lambda path: path.write_bytes(gzip.compress(b"a\n" + b"xxxxxxxxxx\n" * COUNT)),
    "a.parquet": lambda path: parquet.write_table(TABLE, path),  # 2 kB: one value, and how often it comes
    "a.arrow": _arrow,
}


@pytest.mark.parametrize("name", WRITE)
@pytest.mark.parametrize(
    ("bound", "value", "said"), [("MOST_BYTES", 9999, "more than 9,999 bytes"), ("MOST_ROWS", 1999, "1,999 rows")]
)
def test_file_beyond_a_bound_is_refused(tmp_path, monkeypatch, name, bound, value, said):
    path = tmp_path / name
    WRITE[name](path)
    assert len(list(file_rows(path))) >= COUNT
    monkeypatch.setattr(bounded, bound, value)
    with pytest.raises(UserError, match=rf"{name}: .*{said}.* Split it"):
        list(file_rows(path))
    if ".jsonl" in name:
        with pytest.raises(UserError, match=said):
            read_jsonl(path)


def test_bomb_is_not_unpacked_beyond_the_bound(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(bytes(2**25), 1))
    monkeypatch.setattr(bounded, "MOST_BYTES", 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="more than 1,048,576 bytes"):
            read_jsonl(path)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_device_that_never_ends_is_refused(monkeypatch):
    monkeypatch.setattr(bounded, "MOST_BYTES", 2**20)
    if not Path("/dev/zero").exists():
        pytest.skip("this system has no /dev/zero")
    with pytest.raises(UserError, match="more than 1,048,576 bytes"):
        read_jsonl(Path("/dev/zero"))
