"""Read the data of one client of a deployment, and say which files and columns it needs.

The task is agreed: a client's files have the columns of the task's own format, or those of `TaskEntry.asked` with the
answer for a task that ships with fedcollm. JSON lines that `Modality.write_examples` wrote are read too.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedcollm.config import FormatConfig, TaskConfig
from fedcollm.data.catalogue import asked_form, load_private, modality_kind
from fedcollm.data.files import asked_columns
from fedcollm.data.own_files import OWN_FILES
from fedcollm.data.parts import SERVER_PARTS, find_part
from fedcollm.data.pool import Pool
from fedcollm.data.sources.qa import JSONL, LETTERED, with_letters
from fedcollm.errors import UserError
from fedcollm.modalities.base import Modality
from fedcollm.modalities.jsonl import read_jsonl
from fedcollm.modalities.text.examples import TextExample, read_examples

#: Modality of a task that ships with fedcollm to the kind of files that its clients may have.
_KINDS: Mapping[str, str] = {"text": "text", "audio": "audio_files", "shapes": "object_files"}

#: The same to fields that only the lines have that `Modality.write_examples` wrote.
_WRITTEN: Mapping[str, Set[str]] = {
    "text": {"id", "prompt", "choices", "labels"},
    "audio": {"id", "audio", "label"},
    "shapes": {"id", "image", "boxes"},
}

#: Format of boxes to the files that hold them, in words.
_BOXES: Mapping[str, str] = {
    "coco": "images with boxes in the format of COCO: a directory with train.json and a folder images",
    "voc": "images with boxes in the format of Pascal VOC: a directory with Annotations/, JPEGImages/ and "
    "ImageSets/Main/train.txt",
}

_NAMED = 5  # choices that are named


def load_client(task: TaskConfig, path: Path, modality: Modality) -> Pool:
    """Return the examples of a client: those to train on, and those to test on if there are any.

    Args:
        task: the agreed task.
        path: a file of training examples, or a directory with a `train` and possibly a `test` part.
        modality: the client's modality, which knows the classes.

    Raises:
        UserError: there are no training examples, or something is invalid. The message says what the task needs.
    """
    try:
        pool = _load(task, path, modality)
        if not pool.train:
            raise UserError(f"{path} has no train file. Name the file of your own examples train.")
    except UserError as error:
        text = str(error).removeprefix("task.path: ").replace(f"; {SERVER_PARTS}", "").removesuffix(".")
        raise UserError(
            f"--data: {text}. The task is agreed, so mend the data. It needs {data_in_words(task)}."
        ) from error
    return pool


def _load(task: TaskConfig, path: Path, modality: Modality) -> Pool:
    if task.format is not None:
        return load_private(task.format, path, modality)
    kind = modality_kind(task)
    written = _written(kind, path)
    if written or kind not in _KINDS:
        train, test = written.get("train", path), written.get("test")
        return Pool(modality.read_examples(train), modality.read_examples(test) if test else None)
    pool = OWN_FILES[_KINDS[kind]].load_private(path, client_form(task), modality)
    return pool if task.name not in LETTERED else _lettered(pool)


def client_form(task: TaskConfig) -> FormatConfig:
    """Return the format of a client's files."""
    boxes = task.format is None and modality_kind(task) == "shapes"
    return FormatConfig(boxes="coco") if boxes else asked_form(task)


def _lettered(pool: Pool) -> Pool:
    train, test = ([with_letters(example) for example in part or ()] for part in (pool.train, pool.test))
    return replace(pool, train=train, test=test)


def written_texts(path: Path) -> list[TextExample] | None:
    """Return the text examples in a file that `Modality.write_examples` wrote; None if the data has another form.

    Raises:
        UserError: a line is no example.
    """
    files = _written("text", path)
    return read_examples(files["train"]) if files else None


def _written(kind: str, path: Path) -> dict[str, Path]:
    """Return the files of examples that `Modality.write_examples` wrote, by part; none if there are others."""
    if path.is_dir():
        found = {part: find_part(path, part, JSONL) for part in ("train", "test")}
    else:
        found = {"train": path if path.name.endswith(JSONL) else None}
    train = found["train"]
    if train is None or not _WRITTEN.get(kind, set[str]()) <= read_jsonl(train)[0][1].keys():
        return {}
    return {part: file for part, file in found.items() if file is not None}


def data_in_words(task: TaskConfig) -> str:
    """Return which files and columns the data of a client needs, as part of a sentence.

    Raises:
        UserError: the task is unknown.
    """
    form = client_form(task)
    if form.boxes is not None:
        return _BOXES[form.boxes]
    if form.is_folders:
        return f"images in a folder for each class, train/CLASS/{_choices(form)}"
    if form.kind == "text":
        inputs = list(dict.fromkeys(name for name, _ in asked_columns(form)))
    else:
        inputs = [f"{form.image or form.audio} (the path of a file, relative to the table)"]
    answer = form.answer or form.transcript
    what = "what is said" if form.transcript else f"the answer{_choices(form)}"
    columns = [*inputs, *([f"{answer} ({what})"] if answer else [])]
    return f"a table (CSV, JSON, Parquet, ...) with the column{'s' * (len(columns) > 1)} {_listed(columns)}"


def _choices(form: FormatConfig) -> str:
    """Return the answers that a format lists."""
    if not isinstance(form.choices, list):
        return ""
    more = f" and {len(form.choices) - _NAMED} more" if len(form.choices) > _NAMED else ""
    return f": {', '.join(form.choices[:_NAMED])}{more}"


def _listed(names: Sequence[Any]) -> str:
    return " and ".join(", ".join(map(str, part)) for part in (names[:-1], names[-1:]) if part)
