"""Read what a trained model is asked about: rows of a table that need no answers, of every modality."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError

from fedcollm.config import FormatConfig, TaskConfig
from fedcollm.data.audio_files import recording_in
from fedcollm.data.catalogue import asked_form, modality_kind
from fedcollm.data.cells import check_columns
from fedcollm.data.files import asked_columns, unanswered
from fedcollm.data.media_files import Column, unlabelled
from fedcollm.data.rows import Row, part_rows
from fedcollm.data.sources.qa import LETTERED, with_letters
from fedcollm.errors import UserError
from fedcollm.modalities.audio.classification import AudioExample
from fedcollm.modalities.audio.transcripts import SpeechExample
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.vision.boxes import DetectionExample
from fedcollm.modalities.vision.files import ImageFile
from fedcollm.modalities.vision.images import decode
from fedcollm.modalities.vision.task import ImageExample

#: Side of the images of the task `digits`, in pixels.
_DIGIT = 8


class Inputs(NamedTuple):
    """What a model is asked about.

    Attributes:
        rows: the rows as the table has them, column to value.
        examples: an example without an answer for each row, whose id is the number of its row, from 1.
    """

    rows: list[dict[str, Any]]
    examples: list[Any]


class _Reader(NamedTuple):
    """How rows of a kind become examples.

    Attributes:
        columns: returns the columns that are needed, each with the key of the configuration that names it.
        examples: returns an example for each row, given the format and the names of the classes.
    """

    columns: Callable[[FormatConfig], list[tuple[str, str]]]
    examples: Callable[[Sequence[Row], FormatConfig, tuple[str, ...]], list[Any]]


def load_inputs(task: TaskConfig, path: Path, classes: Sequence[str] = (), encoding: str | None = None) -> Inputs:
    """Return the rows of a table, and an example of each.

    Args:
        task: the section that names the task and its columns. Its images and recordings are named by a column too:
            the one of the format, or else `image` or `audio`, with paths relative to the table's folder.
        path: a table, as `tables.ENDINGS` lists them.
        classes: names of the classes, for images and recordings.
        encoding: encoding of the table if it is text; by default that of the format.

    Raises:
        UserError: the table, a row, or a file that it names can't be read.
    """
    form, reader = asked_form(task), _READERS[modality_kind(task)]
    if encoding is not None:
        form = _in_encoding(form, encoding)
    rows = [row._replace(position=i) for i, row in enumerate(part_rows([path], form, reader.columns(form)), start=1)]
    return Inputs([row.cells for row in rows], _examples(task, rows, classes))


def _in_encoding(form: FormatConfig, encoding: str) -> FormatConfig:
    try:
        return FormatConfig.model_validate(form.model_dump() | {"encoding": encoding})
    except ValidationError:
        raise UserError(
            f"--encoding: {encoding!r} is no encoding of text that Python knows. Give one, such as utf-8, cp1252 or "
            "shift_jis."
        ) from None


def inputs_of(task: TaskConfig, rows: Sequence[Mapping[str, Any]], folder: Path, classes: Sequence[str] = ()) -> Inputs:
    """Return rows that are in memory, and an example of each.

    Args:
        task: as in `load_inputs`.
        rows: column to value.
        folder: the folder that paths of images and recordings are relative to.
        classes: as in `load_inputs`.

    Raises:
        UserError: a row lacks a column, or is invalid.
    """
    form, reader = asked_form(task), _READERS[modality_kind(task)]
    made = [Row(folder / "rows", i, f"row {i}", dict(row)) for i, row in enumerate(rows, start=1)]
    for row in made:
        check_columns([row.cells], reader.columns(form), row.place)
    return Inputs([row.cells for row in made], _examples(task, made, classes))


def columns_of(task: TaskConfig) -> list[str]:
    """Return the columns that a row needs to be asked."""
    columns = _READERS[modality_kind(task)].columns(asked_form(task))
    return list(dict.fromkeys(name for name, _ in columns))


def _examples(task: TaskConfig, rows: Sequence[Row], classes: Sequence[str]) -> list[Any]:
    examples = _READERS[modality_kind(task)].examples(rows, asked_form(task), tuple(classes))
    if task.format is None and task.name in LETTERED:
        examples = [with_letters(example) for example in examples]
    return [replace(example, id=str(row.position)) for row, example in zip(rows, examples, strict=True)]


def _text(rows: Sequence[Row], form: FormatConfig, classes: tuple[str, ...]) -> list[TextExample]:
    return unanswered(rows, form)


def _column(form: FormatConfig, kind: str) -> Column:
    """Return the column of the files of images or recordings."""
    what = "image" if kind == "image" else "recording"
    return Column(f"task.format.{kind}", getattr(form, kind) or kind, what)


def _columns(kind: str) -> Callable[[FormatConfig], list[tuple[str, str]]]:
    return lambda form: [(_column(form, kind).name, f"task.format.{kind}")]


def _images(rows: Sequence[Row], form: FormatConfig, classes: tuple[str, ...]) -> list[ImageFile]:
    return [ImageFile.read(one.id, one.source, classes, None) for one in unlabelled(rows, _column(form, "image"))]


def _scenes(rows: Sequence[Row], form: FormatConfig, classes: tuple[str, ...]) -> list[DetectionExample]:
    found = unlabelled(rows, _column(form, "image"))
    return [DetectionExample.read(one.id, one.source, classes, None) for one in found]


def _digits(rows: Sequence[Row], form: FormatConfig, classes: tuple[str, ...]) -> list[ImageExample]:
    """Return images as the task `digits` has them: white on black, gray, 8 x 8."""
    examples: list[ImageExample] = []
    for one in unlabelled(rows, _column(form, "image")):
        gray = decode(one.source, one.place).image.convert("L").resize((_DIGIT, _DIGIT), Image.Resampling.BOX)
        examples.append(ImageExample(one.id, torch.tensor(np.asarray(gray, dtype=np.float32)[None] / 255), None))
    return examples


def _sounds(rows: Sequence[Row], form: FormatConfig, classes: tuple[str, ...]) -> list[AudioExample]:
    found = unlabelled(rows, _column(form, "audio"))
    return [AudioExample(one.id, recording_in(one, form), None, None, classes) for one in found]


def _speech(rows: Sequence[Row], form: FormatConfig, classes: tuple[str, ...]) -> list[SpeechExample]:
    found = unlabelled(rows, _column(form, "audio"))
    return [SpeechExample(one.id, recording_in(one, form), None) for one in found]


#: Name of a modality (a key of `MODALITIES`) to how rows become its examples.
_READERS: Mapping[str, _Reader] = {
    "text": _Reader(asked_columns, _text),
    "image": _Reader(_columns("image"), _digits),
    "image_files": _Reader(_columns("image"), _images),
    "shapes": _Reader(_columns("image"), _scenes),
    "object_files": _Reader(_columns("image"), _scenes),
    "audio": _Reader(_columns("audio"), _sounds),
    "audio_files": _Reader(_columns("audio"), _sounds),
    "speech_files": _Reader(_columns("audio"), _speech),
}
