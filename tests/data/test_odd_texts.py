"""Texts that no file in UTF-8 can hold are refused by every loader, with their place."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from tests.modalities.audio.clips import tone

from fedcollm.config import FormatConfig
from fedcollm.data.audio_files import find_sounds, load_sounds, load_speech
from fedcollm.data.files import load_custom
from fedcollm.data.image_files import find_classes, load_images
from fedcollm.data.texts import load_text
from fedcollm.errors import UserError
from fedcollm.modalities.audio.transcripts import read_speech, write_speech
from fedcollm.modalities.text.examples import TextExample, example_lines, read_examples

ODD = {"surrogate": "\ud800", "null": "\0"}
TEXT = FormatConfig(prompt="{q}", answer="a", group="ward")
CHOICES = FormatConfig(prompt="{q}", answer="a", choices="all", group="ward")
SOUNDS = FormatConfig(audio="file", answer="a", group="ward")
SPEECH = FormatConfig(audio="file", transcript="a", group="ward")
IMAGES = FormatConfig(image="file", answer="a", group="ward")

LOADERS = {
    "text": lambda path: load_custom(path, TEXT),
    "choices": lambda path: load_custom(path, CHOICES),
    "sounds": lambda path: load_sounds(path, SOUNDS, find_sounds(path, SOUNDS)),
    "speech": lambda path: load_speech(path, SPEECH),
    "images": lambda path: load_images(path, IMAGES, find_classes(path, IMAGES)),
    "heal": lambda path: load_text(str(path)),
}
COLUMNS = {
    "text": ("id", "q", "a", "ward"),
    "choices": ("id", "q", "a", "ward", "all"),
    "heal": ("text",),
    **dict.fromkeys(("sounds", "speech", "images"), ("id", "file", "a", "ward")),
}


def rows(loader: str, folder: Path) -> list[dict[str, str]]:
    for name in "xy":
        (folder / f"{name}.wav").write_bytes(tone(300 if name == "x" else 900, 0.2).encoded())
        Image.new("RGB", (4, 4), (ord(name), 0, 0)).save(folder / f"{name}.png")
    suffix = "png" if loader == "images" else "wav"
    more = {"all": "x|y", "ward": "w", "text": "some words"}
    return [{"id": f"i{n}", "q": f"what {n}", "a": n, "file": f"{n}.{suffix}", **more} for n in "xy"]


@pytest.mark.parametrize("sign", ODD)
@pytest.mark.parametrize(("loader", "column"), [(kind, column) for kind in LOADERS for column in COLUMNS[kind]])
def test_every_column_of_every_table_is_checked(tmp_path, loader, column, sign):
    good, table = rows(loader, tmp_path), tmp_path / "train.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in good), encoding="utf-8")
    LOADERS[loader](table)
    good[1][column] += ODD[sign]
    table.write_text("".join(json.dumps(row) + "\n" for row in good), encoding="utf-8")
    with pytest.raises(UserError, match=rf"train\.jsonl, line 2: column '{column}'.*{sign}.*Correct it"):
        LOADERS[loader](table)


def test_choices_inside_of_a_text_are_checked_after_they_are_read(tmp_path):
    row = {**rows("choices", tmp_path)[0], "all": '["x", "\\ud800"]'}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 1: column 'all'.*surrogate"):
        LOADERS["choices"](tmp_path / "train.jsonl")


@pytest.mark.parametrize("where", ["folder", "file"])
def test_names_of_folders_and_images_must_be_utf8(tmp_path, where):
    for name in "xy":
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), (ord(name), 0, 0)).save(tmp_path / "train" / name / "i.png")
    old, new = {"folder": ("y", b"\xff"), "file": ("y/i.png", b"y/\xff.png")}[where]
    try:
        os.rename(os.fsencode(tmp_path / "train" / old), os.fsencode(tmp_path / "train") + b"/" + new)
    except OSError:
        pytest.skip("the file system takes only names in UTF-8")
    format = FormatConfig()
    with pytest.raises(UserError, match=r"the name of (a class folder|an image) holds .*surrogate U\+DCFF"):
        load_images(tmp_path, format, find_classes(tmp_path, format))


def test_examples_of_a_deployed_client_are_checked(tmp_path):
    examples = tmp_path / "data.jsonl"
    examples.write_text(example_lines([TextExample("1", "a \ud800", ("b",), 0, ("b",))]), encoding="utf-8")
    with pytest.raises(UserError, match=r"data\.jsonl, line 1.*surrogate"):
        read_examples(examples)
    (good,) = load_speech(speech_table(tmp_path), SPEECH).train
    examples.write_text(write_speech([good]).replace('"hello"', '"hello\\u0000"'), encoding="utf-8")
    with pytest.raises(UserError, match=r"data\.jsonl, line 1.*null character"):
        read_speech(examples)


def speech_table(folder: Path) -> Path:
    (folder / "x.wav").write_bytes(tone(300, 0.2).encoded())
    (folder / "one.csv").write_text("file,a,ward\nx.wav,hello,w\n", encoding="utf-8")
    return folder / "one.csv"


def test_a_text_for_healing_has_no_null_character(tmp_path):
    (tmp_path / "a.txt").write_text("good\nbad\0\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.txt: line 2 holds .*null"):
        load_text(str(tmp_path / "a.txt"))
