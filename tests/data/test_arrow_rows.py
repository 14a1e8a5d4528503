"""Rows of Parquet and Arrow: their types, the classes of `datasets`, and what is said of broken files."""

import datetime
import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from fedcollm.config import FormatConfig
from fedcollm.data.files import load_custom
from fedcollm.data.tables import file_rows
from fedcollm.errors import UserError

FREE = FormatConfig(prompt="{text}", answer="answer")


def write(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
        return path
    make = pa.ipc.new_file if path.stem == "file" else pa.ipc.new_stream
    with make(path, table.schema) as sink:
        sink.write_table(table)
    return path


def labelled(names: object, *numbers: int | None) -> pa.Table:
    features = {"label": {"names": names, "_type": "ClassLabel"}, "text": {"dtype": "string", "_type": "Value"}}
    table = pa.table({"text": [f"t{i}" for i in range(len(numbers))], "label": pa.array(numbers, pa.int64())})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


@pytest.mark.parametrize("name", ["x.parquet", "file.arrow", "stream.arrow", "X.PARQUET"])
def test_rows_and_classes(tmp_path, name):
    path = write(tmp_path / name.lower(), labelled(["no", "yes"], 1, 0, -1, None)).rename(tmp_path / name)
    assert list(file_rows(path)) == [
        (f"{path}, row {n}", {"text": f"t{n - 1}", "label": label})
        for n, label in enumerate(("yes", "no", None, None), start=1)
    ]
    answered = FormatConfig(prompt="{text}", answer="label", choices=["yes", "no"], skip_unanswered=True)
    pool = load_custom(path, answered)
    assert [example.answer for example in pool.train] == [0, 1]
    assert pool.notes == [f"{name}: 2 of 4 rows have no answer (column 'label' (task.format.answer)) and are left out"]


def test_number_that_is_no_class_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"row 2: column 'label' holds 2, but its 2 classes have the numbers from 0"):
        list(file_rows(write(tmp_path / "x.parquet", labelled(["no", "yes"], 1, 2))))


@pytest.mark.parametrize("metadata", ["[", "{}", '{"info": []}', '{"info": {"features": {"text": 1}}}'])
def test_other_metadata_is_no_matter(tmp_path, metadata):
    table = pa.table({"text": ["a"]}).replace_schema_metadata({"huggingface": metadata})
    assert [row for _, row in file_rows(write(tmp_path / "x.parquet", table))] == [{"text": "a"}]


VALUES = {
    "bytes": (pa.array(["Fieber für 3 Tage".encode()]), "Fieber für 3 Tage"),
    "view of bytes": (pa.array([b"x"], pa.binary()), "x"),
    "whole float": (pa.array([3.0]), "3"),
    "float": (pa.array([2.5]), "2.5"),
    "short float": (pa.array([0.1], pa.float32()), "0.1"),
    "half float": (pa.array([np.float16(0.1)]), "0.1"),
    "huge float": (pa.array([1e300]), "1e+300"),
    "bool": (pa.array([True]), "True"),
    "date": (pa.array([datetime.date(2024, 1, 2)]), "2024-01-02"),
    "time": (pa.array([datetime.time(9, 30)]), "09:30:00"),
    "timestamp": (pa.array([datetime.datetime(2024, 1, 2, 9, 30)]), "2024-01-02 09:30:00"),
    "nanoseconds": (pa.array([1], pa.timestamp("ns")), "1970-01-01 00:00:00.000000001"),
    "decimal": (pa.array([Decimal("1.50")]), "1.50"),
    "dictionary": (pa.array(["x"]).dictionary_encode(), "x"),
    "large": (pa.array(["x"], pa.large_string()), "x"),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_cell_becomes_text_in_one_stated_way(tmp_path, kind):
    column, text = VALUES[kind]
    path = write(tmp_path / "x.parquet", pa.table({"text": column, "answer": column}))
    (example,) = load_custom(path, FREE).train
    assert (example.prompt, example.choices) == (text, (text,))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([b"\xff\xfe"]), "row 1: column 'text' (task.format.prompt) holds bytes that are no text in UTF-8"),
        (pa.array([[b"\xff"]]), "row 1: column 'text' (task.format.prompt) holds bytes"),
        (pa.array([["a"]]), "row 1: column 'text' (task.format.prompt) holds ['a']"),
        (pa.array([{"a": 1}]), "holds {'a': 1}"),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), "holds [('a', 1)]"),
        (pa.array([5], pa.duration("s")), "holds datetime.timedelta(seconds=5)"),
        (pa.array([10**14], pa.timestamp("s")), "row 1 or one soon after it can't be read"),
        (pa.array([None], pa.string()), "row 1: column 'text' (task.format.prompt) is empty"),
        (pa.array([float("nan")]), "is empty"),
        (pa.array([b" "]), "is empty"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, column, message):
    path = write(tmp_path / "x.parquet", pa.table({"text": column, "answer": ["a"]}))
    with pytest.raises(UserError) as error:
        load_custom(path, FREE)
    assert message in str(error.value)


def test_what_is_nested_deeply_is_no_text(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": ' + "[" * 900 + "]" * 900 + ', "answer": "a"}', encoding="utf-8")
    with pytest.raises(UserError, match=r"line 1: column 'text' .* holds"):
        load_custom(tmp_path / "x.jsonl", FREE)


def test_bytes_in_lists_are_choices(tmp_path):
    table = pa.table({"text": ["q", "r"], "answer": [b"no", b"yes"], "c": [[b"yes", b"no"]] * 2})
    path = write(tmp_path / "x.parquet", table)
    pool = load_custom(path, FREE.model_copy(update={"choices": "c"}))
    assert [(e.choices, e.answer) for e in pool.train] == [(("yes", "no"), 1), (("yes", "no"), 0)]


def test_broken_files(tmp_path):
    twice = pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"])
    whole = write(tmp_path / "stream.arrow", pa.table({"text": ["a" * 999]})).read_bytes()
    (tmp_path / "cut.arrow").write_bytes(whole[:300])
    (tmp_path / "text.parquet").write_text("text")
    (tmp_path / "empty.arrow").write_text("")
    for path, message in (
        (write(tmp_path / "x.parquet", twice), "there are two columns 'text'"),
        (tmp_path / "cut.arrow", "can't be read as Arrow"),
        (tmp_path / "empty.arrow", "can't be read as Arrow"),
        (tmp_path / "text.parquet", "can't be read as Parquet"),
        (tmp_path / "none.parquet", "can't be read as Parquet"),
    ):
        with pytest.raises(UserError, match=message):
            list(file_rows(path))
