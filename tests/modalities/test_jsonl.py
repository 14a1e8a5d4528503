"""JSON lines: what is read, and what names its file and line."""

import gzip
from pathlib import Path

import pytest

from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import read_jsonl


def test_lines_are_counted_and_blank_ones_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes('\ufeff{"a": 1}\r\n\r\n  \n{"b": "ä\u2028"}'.encode())
    assert read_jsonl(path) == [(1, {"a": 1}), (4, {"b": "ä\u2028"})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"", "x.jsonl is empty"),
        ("x.jsonl", b"\n\n", "x.jsonl is empty"),
        ("x.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "x.jsonl, line 2: not valid JSON"),
        ("x.jsonl.gz", b"not gzipped", "x.jsonl.gz: can't be read"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-12], "x.jsonl.gz: can't be read"),
    ],
)
def test_a_broken_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_jsonl(tmp_path / name)
    assert message in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: no such file"):
        read_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="can't be read"):
        read_jsonl(tmp_path)
