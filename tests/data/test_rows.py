"""Rows without an answer, in tables of text, images and recordings."""

from pathlib import Path

import pytest
from PIL import Image
from tests.modalities.audio.clips import tone

from fedcollm.config import FormatConfig, PartitionConfig, TaskConfig
from fedcollm.data.audio_files import find_sounds, load_sounds, load_speech
from fedcollm.data.files import load_custom
from fedcollm.data.image_files import find_classes, load_images
from fedcollm.data.partition import split
from fedcollm.data.pool import Pool
from fedcollm.errors import UserError

LOADERS = {
    "text": ({"prompt": "{file}", "answer": "kind"}, lambda path, form: load_custom(path, form)),
    "choices": ({"prompt": "{file}", "answer": "kind", "choices": ["x", "y"]}, lambda p, form: load_custom(p, form)),
    "images": (
        {"image": "file", "answer": "kind"},
        lambda path, form: load_images(path, form, find_classes(path, form)),
    ),
    "sounds": ({"audio": "file", "answer": "kind"}, lambda p, form: load_sounds(p, form, find_sounds(p, form))),
    "speech": ({"audio": "file", "transcript": "kind"}, lambda path, form: load_speech(path, form)),
}


def load(folder: Path, kind: str, *kinds: str, skip: bool) -> Pool:
    ending, (keys, loader) = "png" if kind == "images" else "wav", LOADERS[kind]
    for i in range(len(kinds)):
        (folder / f"{i}.wav").write_bytes(tone(300 + 50 * i, 0.2).encoded())
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i}.png")
    lines = ["file,kind", *(f"{i}.{ending},{one}" for i, one in enumerate(kinds))]
    (folder / "x.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return loader(folder / "x.csv", FormatConfig.model_validate({**keys, "skip_unanswered": skip}))


@pytest.mark.parametrize("kind", LOADERS)
def test_rows_without_an_answer_are_left_out_and_counted_on_request(tmp_path, kind):
    pool = load(tmp_path, kind, "x", " ", "y", "", skip=True)
    assert [(example.id, example.label) for example in pool.train] == [("1", "x"), ("3", "y")]
    (note,) = pool.notes
    assert note.startswith("x.csv: 2 of 4 rows have no answer")
    with pytest.raises(UserError, match=r"line 3: column 'kind' .* is empty\. .*task\.format\.skip_unanswered: true"):
        load(tmp_path, kind, "x", " ", "y", "", skip=False)
    with pytest.raises(UserError, match=r"x\.csv: no row has an answer"):
        load(tmp_path, kind, "", "", skip=True)


@pytest.mark.parametrize("kind", ["images", "sounds"])
def test_answers_of_images_and_recordings_may_be_positions_of_listed_classes(tmp_path, kind):
    load(tmp_path, kind, "1", "0", skip=False)
    keys = LOADERS[kind][0]
    form = FormatConfig.model_validate({**keys, "choices": ["low", "high"]})
    pool = LOADERS[kind][1](tmp_path / "x.csv", form)
    assert [example.label for example in pool.train] == ["high", "low"]
    assert pool.notes == ["the answers in column 'kind' are read as positions of the choices from 0"]


def test_notes_reach_the_split(tmp_path):
    pool = load(tmp_path, "choices", "x", "y", "", "x", skip=True)
    keys = {"clients": 1, "private_size": 1, "public_size": 1, "unlabelled_size": 0, "test_size": 1}
    parts = split(pool, TaskConfig(partition=PartitionConfig(kind="iid"), **keys), 0)
    assert len(pool.notes) == 1
    assert parts.notes[0] == pool.notes[0]


def test_a_wrong_encoding_is_named_where_the_rows_seem_to_be_missing(tmp_path):
    def said(content: bytes, encoding: str) -> str:
        (tmp_path / "x.csv").write_bytes(content)
        with pytest.raises(UserError) as error:
            load_custom(tmp_path / "x.csv", FormatConfig(prompt="{note}", answer="kind", encoding=encoding))
        return str(error.value)

    table, hint = b"note,kind\nany,a\nall,b\n", " Or correct task.format.encoding, if the file is not in "
    assert said(table, "utf-16").endswith(f"has no rows. Add some, or set task.path to another file.{hint}utf-16.")
    assert said("né,kind\na,b\n".encode(), "cp1252").endswith(f"The columns are nÃ©, kind.{hint}cp1252.")
    assert hint not in said(table[:10], "utf-8")
    assert hint not in said(b"n,kind\na,b\n", "UTF8")
