"""Read data for an audit: all of it, whatever is wrong with single rows or files, which becomes a fault of the record.

Only the training part is read, since that is what a client trains on. No path leaves the folder of the data.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedcollm.config import FormatConfig
from fedcollm.data.audit.findings import Record, Subject
from fedcollm.data.cells import cell_text, composed, is_empty, label_text, plain_text
from fedcollm.data.conversations import conversation
from fedcollm.data.files import asked_columns
from fedcollm.data.media_files import Column, inside, unlabelled
from fedcollm.data.parts import PARTS, find_parts, labelled_part
from fedcollm.data.rows import Row, part_rows
from fedcollm.data.templates import Template
from fedcollm.errors import UserError
from fedcollm.modalities.vision.images import SUFFIXES

#: Value of `task.format.boxes` to the folder of the images.
_BOXES: Mapping[str, str] = {"coco": "images", "voc": "JPEGImages"}


def read_subject(path: Path, form: FormatConfig) -> Subject:
    """Return the records of the training part of the data.

    Args:
        path: a table, or a directory of tables or of images, as a run reads them.
        form: which columns are what.

    Raises:
        UserError: the data as a whole can't be read, or lacks a column.
    """
    if form.boxes is not None or form.is_folders:
        found = list(_in_folder(path, path / _BOXES[form.boxes]) if form.boxes else _in_classes(path))
        _check_images(path, found)
        if not found:
            raise UserError(f"{path} has no images. Give the folder with train/CLASS/, or with {_BOXES['coco']}/.")
        return Subject(form.kind, found)
    rows = part_rows(labelled_part(find_parts(path).files), form, needed_columns(form))
    make = _READERS["text" if form.kind == "text" else "media"](form)
    records = [make(row, number) for row, number in _numbered(rows)]
    answer = form.answer or form.transcript or ""
    return Subject(form.kind, records, answer, form.is_free or isinstance(form.choices, str))


def _check_images(path: Path, found: Sequence[Record]) -> None:
    """Refuse a folder in which no file is an image, such as one of recordings: each would be a finding to drop.

    Raises:
        UserError: names one of the files.
    """
    if found and not any(one.file.suffix.lower() in SUFFIXES for one in found):
        raise UserError(
            f"{path} has no images ({', '.join(SUFFIXES)}): its {len(found)} files are like {found[0].raw['image']}. "
            "Give recordings as a table with a column of their files and one of their labels."
        )


def asked_of(record: Record, form: FormatConfig) -> str:
    """Return the text of a record without the choices that a column gives it: what an example has as its prompt."""
    if not isinstance(form.choices, str):
        return record.text
    return record.text.removesuffix(f"\n{_text(record.raw.get(composed(form.choices)))}")


def needed_columns(form: FormatConfig) -> list[tuple[str, str]]:
    """Return the columns that a table must have, each with the key that names it."""
    if form.kind == "text":
        named = asked_columns(form)
    else:
        named = [(str(name), f"task.format.{key}") for key in ("image", "audio") if (name := getattr(form, key))]
    labels = [(name, f"task.format.{key}") for key in ("answer", "transcript") if (name := getattr(form, key))]
    return [*named, *labels]


def _numbered(rows: Sequence[Row]) -> Iterator[tuple[Row, int]]:
    """Yield each row with its number in its own file, from 1."""
    last: Path | None = None
    number = 0
    for row in rows:
        number = number + 1 if row.file == last else 1
        last = row.file
        yield row, number


def _text_reader(form: FormatConfig) -> Callable[[Row, int], Record]:
    template = None if form.prompt is None else Template(form.prompt)

    def read(row: Row, number: int) -> Record:
        columns = [] if template is None else template.columns
        own = _text(row.cells.get(composed(form.choices))) if isinstance(form.choices, str) else ""
        inputs = {name: text for name in columns if (text := _text(row.cells.get(composed(name))))}
        cells, place = inputs, _place(row)
        label = _label(row, form.answer)
        if form.is_free and label is not None and form.answer is not None:
            cells = cells | {form.answer: label}
        try:
            if template is None:
                talk = conversation(row.cells.get(composed(str(form.messages))), row.place)
                text, label = talk.prompt, talk.answer
            else:
                text = template.fill(row.cells, row.place)[0] + (f"\n{own}" if own else "")
        except UserError as error:
            text = "\n".join(inputs.values())
            fault = "" if template is not None and not text.strip() else _reason(error, row.place)
            return Record(row.file, number, place, text, label, cells, None, row.cells, fault)
        return Record(row.file, number, place, text, label, cells, None, row.cells)

    return read


def _media_reader(form: FormatConfig) -> Callable[[Row, int], Record]:
    key = "image" if form.image is not None else "audio"
    column = Column(f"task.format.{key}", str(getattr(form, key)), "image" if key == "image" else "recording")

    def read(row: Row, number: int) -> Record:
        label = _label(row, form.answer or form.transcript)
        cells = {form.transcript: label} if form.transcript and label else {}
        try:
            source = unlabelled([row], column)[0].source
        except UserError as error:
            fault = _reason(error, row.place)
            return Record(row.file, number, _place(row), "", label, cells, b"", row.cells, fault)
        return Record(row.file, number, _place(row), "", label, cells, source, row.cells)

    return read


#: Kind of table to what makes a record of its rows.
_READERS: Mapping[str, Callable[[FormatConfig], Callable[[Row, int], Record]]] = {
    "text": _text_reader,
    "media": _media_reader,
}


def _place(row: Row) -> str:
    """Return the file and line of a row, without the folder."""
    return row.place.removeprefix(f"{row.file.parent}{os.sep}")


def _text(value: Any) -> str:
    """Return what a cell holds as text, a list or an object as Python writes it; nothing if it is empty."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return "" if is_empty(value) else plain_text(value) or str(value)


def _label(row: Row, column: str | None) -> str | None:
    """Return the label of a row; None if it is empty, or what can be no label."""
    if column is None or is_empty(row.cells.get(composed(column))):
        return None
    try:
        return cell_text(row.cells, column, row.place, "task.format.answer")
    except UserError:
        return label_text(_text(row.cells[composed(column)]), row.place) or None


def _reason(error: UserError, place: str) -> str:
    """Return what an error says, without the place, which the record names."""
    return str(error).removeprefix(f"{place}: ")


def _in_classes(path: Path) -> Iterator[Record]:
    """Yield the images in the class folders of the training part, or of the directory itself if it has no parts."""
    folders = [entry for entry in sorted(path.iterdir()) if entry.is_dir()]
    root = next((folder for folder in folders if folder.name.lower() in PARTS["train"]), path)
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            yield from _in_folder(path, folder, composed(folder.name))


def _in_folder(root: Path, folder: Path, label: str | None = None) -> Iterator[Record]:
    for file in sorted(folder.rglob("*") if label is None else folder.iterdir()):
        if file.is_dir() or file.name.startswith(".") or file.name in ("Thumbs.db", "desktop.ini"):
            continue
        place = file.relative_to(root).as_posix()
        try:
            source: Path | bytes = inside(root, place, place, "image")
            fault = "" if file.suffix.lower() in SUFFIXES else "is no image file"
        except UserError as error:
            source, fault = b"", _reason(error, place)
        yield Record(file, 0, place, "", label, {}, source, {"image": place}, fault)
