"""Which files of a directory are which part of the data, and what is said where nothing fits."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from fedcollm.config import FormatConfig
from fedcollm.data.files import load_custom
from fedcollm.data.parts import PARTS, Parts, data_files, find_parts
from fedcollm.errors import UserError


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}", encoding="utf-8")
    return root


def found(root: Path) -> dict[str, list[str]]:
    return {part: [f.relative_to(root).as_posix() for f in files] for part, files in find_parts(root).files.items()}


def said(root: Path) -> str:
    with pytest.raises(UserError) as error:
        find_parts(root)
    return str(error.value)


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in PARTS.items() for name in names])
def test_every_spelling_of_a_part(tmp_path, part, name):
    put(tmp_path, f"{name.title()}.CSV", *(["train.csv"] if part != "train" else []))
    assert found(tmp_path)["test" if part == "validation" else part] == [f"{name.title()}.CSV"]


def test_a_test_set_goes_before_validation_data_and_a_note_says_so(tmp_path):
    parts = find_parts(put(tmp_path, "train.jsonl", "val.jsonl", "eval.jsonl"))
    assert parts.files == {"train": [tmp_path / "train.jsonl"], "test": [tmp_path / "eval.jsonl"]}
    assert parts.notes == [f"{tmp_path.name}: the validation data is not used, since there is a test set"]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], {"train": [0, 1]}),
        (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001-0a1b2c3d4e5f6071.parquet", "README.md"],
         {"train": [0], "test": [1]}),
        (["train/0000.parquet", "train/0001.parquet", "validation/0000.parquet"], {"train": [0, 1], "test": [2]}),
        (["data/train/x.csv", "data/test/x.csv"], {"train": [0], "test": [1]}),
        (["train.csv", "train/x.jpg", "test/y.wav", "test/y.json", "images/y.csv"], {"train": [0]}),  # what tables name
        (["train.csv", ".hidden.csv", "_cache.csv", "dataset_infos.json", "notes.txt", "README.md"], {"train": [0]}),
        (["train.csv", "test.jpg", "train.py", "eval/run.sh"], {"train": [0]}),
        (["public.csv", "val.csv", "unlabeled.csv"], {"public": [0], "test": [1], "unlabelled": [2]}),  # at a server
        (["train-1-of-1.jsonl.gz"], {"train": []}),
    ],
)  # fmt: skip
def test_layouts(tmp_path, names, wanted):
    if wanted == {"train": []}:
        put(tmp_path, *names)
        assert "there is no train-0-of-1.jsonl.gz" in said(tmp_path)
        return
    assert found(put(tmp_path, *names)) == {part: [names[i] for i in at] for part, at in wanted.items()}
    assert sorted(data_files(tmp_path)) == sorted(tmp_path / names[i] for at in wanted.values() for i in at)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train.csv", "training.csv"], "both train and training, two names for the train data"),
        (["train.csv", "train.jsonl"], "both train.csv and train.jsonl"),
        (["train.csv", "train-00000-of-00001.csv"], "both train-00000-of-00001.csv and train.csv"),
        (["train.csv", "holdout.csv"], "holdout.csv: its name is that of no part of the data"),
        (["train.csv", "test_set.jsonl.gz"], "test_set.jsonl.gz: its name is that of no part"),
        (["notes.csv", "data/train.csv"], "notes.csv: its name is that of no part"),
        (["train/a.csv", "holdout/a.csv"], "holdout: its name is that of no part"),
        (["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"], "there is no train-00001-of-00003.parquet"),
        (["train-00000-of-00001.csv", "train-00000-of-00002.csv"], "are shards of two data sets"),
        (["train-00000-of-00001.csv", "train-00000-of-00001-0a1b2c.csv"], "there are two of some numbers"),
        (["other.txt", "sub/x"], "has no train file. It has other.txt, sub/. Name the training file"),
        (["test.csv"], "has no train file. It has test.csv"),
        (["public.csv"], "has no train file. It has public.csv"),
        ([], "has no train file. It is empty"),
        (["train.csv", "test/part-0.csv"], "test/ would not be read beside train.csv, though it seems to be data. Put"),
        (["train.csv", "Test/more/0.csv"], "Test/ would not be read beside train.csv"),
        (["train.csv", "data/test.csv"], "data/test.csv would not be read beside train.csv"),
        (["data/train.csv", "test/0.csv"], "test/ would not be read beside data/train.csv"),
        (["train.csv", "test/a.jpg", "test/rows.csv"], "test/ would not be read"),
        (
            ["train.csv", "Test.xlsx"],
            "Test.xlsx would not be read beside train.csv, though it seems to be data. Save it",
        ),
        (["train.csv", "test.csv.bz2"], "test.csv.bz2 would not be read"),
        (["train.csv", "test.txt"], "test.txt would not be read"),
        (["train.csv", "test-00000-of-00001.xlsx"], "test-00000-of-00001.xlsx would not be read"),
        (["train.csv", "test/rows.txt"], "test/ would not be read"),
        (["train/0.csv", "train/more/1.csv"], "train/more/1.csv would not be read beside train/0.csv"),
        (["train/0.csv", "train/1.xlsx"], "train/1.xlsx would not be read"),
        (["train/a.csv", "test.csv"], "train/ would not be read beside test.csv, though it seems to be data. Put"),
        (["train.csv/part-0.csv"], "train.csv is a directory, but has the name of a table"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, names, message):
    assert message in said(put(tmp_path, *names)).replace("\\", "/")


def test_links_that_lead_nowhere_and_paths_that_are_none(tmp_path):
    (tmp_path / "train.csv").symlink_to("train.csv")
    assert "no file that can be read" in said(tmp_path)
    assert data_files(tmp_path) == []
    assert "does not exist" in said(tmp_path / "none")
    assert "can't be read" in said(tmp_path / ("x" * 300))
    file = put(tmp_path, "any name.csv") / "any name.csv"
    assert find_parts(file) == Parts({"train": [file]})


def save(folder: Path, **state: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"text": ["x1", "x2"], "label": ["a", "b"]})
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as sink:
        sink.write_table(table)
    listed = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], **state}
    (folder / "state.json").write_text(json.dumps(listed), encoding="utf-8")


def test_what_datasets_saves(tmp_path):
    form = FormatConfig(prompt="{text}:", answer="label", choices=["a", "b"])
    save(tmp_path / "one")
    assert [example.prompt for example in load_custom(tmp_path / "one", form).train] == ["x1:", "x2:"]
    for split in ("train", "validation"):
        save(tmp_path / "two" / split)
    (tmp_path / "two/dataset_dict.json").write_text('{"splits": ["train", "validation"]}', encoding="utf-8")
    assert len(load_custom(tmp_path / "two", form).test or ()) == 2
    assert [file.parent.name for file in data_files(tmp_path / "two")] == ["train", "validation"]
    (tmp_path / "two/dataset_dict.json").write_text('{"splits": ["train", "holdout"]}', encoding="utf-8")
    assert "holdout/state.json: no such file" in said(tmp_path / "two").replace("\\", "/")
    save(tmp_path / "two/holdout")
    assert "its name is that of no part" in said(tmp_path / "two")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_data_files": [{"filename": "gone.arrow"}]}, "gone.arrow: no such file"),
        ({"_data_files": [{"filename": "../x.arrow"}]}, "is no name of a file in it"),
        ({"_data_files": []}, "names no data files"),
        ({"_indices_data_files": [{"filename": "i.arrow"}]}, "with a selection of its rows"),
    ],
)
def test_saved_data_that_is_damaged(tmp_path, state, message):
    save(tmp_path, **state)
    assert message in said(tmp_path)
    (tmp_path / "state.json").write_text("[", encoding="utf-8")
    assert "state.json can't be read" in said(tmp_path)


def test_shards_are_one_part_with_ids_of_its_own(tmp_path):
    for number in (0, 1):
        table = pa.table({"text": [f"x{number}"], "label": ["ab"[number]]})
        parquet.write_table(table, tmp_path / f"train-0000{number}-of-00002.parquet")
    pool = load_custom(tmp_path, FormatConfig(prompt="{text}:", answer="label", choices=["a", "b"]))
    assert [(example.id, example.prompt) for example in pool.train] == [("1", "x0:"), ("2", "x1:")]
