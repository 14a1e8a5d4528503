"""What the user's own images and recordings have in common: tables that name files, and where those files may be.

No path leaves the folder of the data, also not by a symbolic link.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

from fedcollm.config import FormatConfig
from fedcollm.data.files import SUFFIXES, cell_text, cell_value, file_rows, find_part
from fedcollm.errors import UserError
from fedcollm.modalities.facts import class_fault
from fedcollm.modalities.jsonl import shorten

#: Part of a pool to the names that its folder or file may have.
PARTS: Mapping[str, Sequence[str]] = {
    "train": ("train",),
    "test": ("test", "dev", "val"),
    "public": ("public",),
    "unlabelled": ("unlabelled",),
}


class Found(NamedTuple):
    """A file that the data names: its place for messages, its id, the file or its content, its label and group."""

    place: str
    id: str
    source: Path | bytes
    label: str | None
    group: str | None


class Column(NamedTuple):
    """A column of file names: the key of the configuration that names it, its name, and what the files are."""

    key: str
    name: str
    what: str


def train_table(path: Path) -> Path:
    """Return the table of the training data.

    Args:
        path: a table, or a directory of tables with the names of `PARTS`.

    Raises:
        UserError: there is none, or there are two.
    """
    found = part_table(path, PARTS["train"]) if path.is_dir() else path
    if found is None or not found.exists():
        names = ", ".join("train" + suffix for suffix in SUFFIXES)
        raise UserError(f"task.path: {path} does not exist or has no train file. Give a file, or name it {names}.")
    return found


def part_table(path: Path, names: Sequence[str]) -> Path | None:
    """Return the table of a part, or None if there is none.

    Raises:
        UserError: there are two.
    """
    if not path.is_dir():
        return None
    return only([file for name in names if (file := find_part(path, name)) is not None], path)


def only(found: Sequence[Path], path: Path) -> Path | None:
    """Return the only file or folder of a part, or None if there is none.

    Raises:
        UserError: there are two.
    """
    if len(found) > 1:
        raise UserError(f"{path}: there are both {found[0].name} and {found[1].name}. Keep only one of them.")
    return found[0] if found else None


def listed_classes(path: Path, format: FormatConfig, examples: str) -> tuple[str, ...]:
    """Return the classes that a format lists, or else all answers of the training table, sorted.

    Args:
        path: as in `train_table`.
        format: its column of answers, and its choices.
        examples: what the examples are, for the message.

    Raises:
        UserError: the training table can't be read, or has fewer than two classes.
    """
    if isinstance(format.choices, list):
        return check_names(path, [choice.strip() for choice in format.choices], examples)
    key, rows = "task.format.answer", file_rows(train_table(path))
    return check_names(path, sorted({cell_text(row, str(format.answer), place, key) for place, row in rows}), examples)


def check_names(path: Path, classes: Sequence[str], examples: str) -> tuple[str, ...]:
    """Return the names of classes as they are.

    Raises:
        UserError: there are fewer than two, two are equal, or a name is one that clients refuse, see `class_fault`.
    """
    if len(classes) < 2 or len(set(classes)) < len(classes) or not all(classes):
        raise UserError(
            f"task.path: {path} has the classes {shorten(list(classes))}. Give at least two distinct classes of "
            f"{examples}."
        )
    if reason := class_fault(classes):
        raise UserError(
            f"task.path: {path} has classes of {examples} with names that can't be used: {reason}. Rename it."
        )
    return tuple(classes)


def table_rows(file: Path, column: Column, labels: str | None, label_key: str, group: str | None) -> Iterator[Found]:
    """Yield what each row of a table names.

    Args:
        file: the table; the paths in it are relative to its folder.
        column: the column of file names, or of the contents of files.
        labels: the column of labels; None if there are none.
        label_key: the key of the configuration that names it.
        group: the column of natural clients, if any.

    Raises:
        UserError: the table or a row is invalid, or a file is missing or outside of the folder.
    """
    for position, (place, row) in enumerate(file_rows(file), start=1):
        value = cell_value(row, column.name, place, column.key)
        content = cast("dict[str, Any]", value).get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, (str, bytes)):
            raise UserError(
                f"{place}: column {column.name!r} ({column.key}) holds {shorten(value)}. It needs the path of "
                f"{article(column.what)} file, or its bytes."
            )
        yield Found(
            place=place,
            id=cell_text(row, "id", place, "id") if "id" in row else str(position),
            source=content if isinstance(content, bytes) else inside(file.parent, content, place, column.what),
            label=None if labels is None else cell_text(row, labels, place, label_key),
            group=None if group is None else cell_text(row, group, place, "task.format.group"),
        )


def folder_inside(root: Path, name: str, what: str) -> Path:
    """Return a folder of the data.

    Args:
        root: the directory of the data, which may be a symbolic link itself.
        name: path of the folder, relative to it.
        what: what is in the folder, such as images.

    Raises:
        UserError: a symbolic link leads out of the directory.
    """
    folder = root / name
    try:
        leads_out = not folder.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a loop of links
        leads_out = True
    if leads_out:
        raise UserError(
            f"{folder}: the folder of the {what} is a symbolic link that leads out of {root}. Put the {what} into that "
            "directory."
        )
    return folder


def inside(root: Path, name: str, place: str, what: str) -> Path:
    """Return a file in a folder, given its relative path.

    Args:
        root: the folder.
        name: the path.
        place: where the path is written, for the message.
        what: what the file is, such as image.

    Raises:
        UserError: it is missing, or the path leads out of the folder, by itself or by a symbolic link.
    """
    folder = root.resolve()
    try:
        file = (folder / name.strip()).resolve()
        is_file = file.is_file()
    except (OSError, ValueError, RuntimeError):  # a null character, a loop of links, a name that is too long
        file, is_file = folder / "?", False
    if PurePosixPath(name).is_absolute() or Path(name).is_absolute() or not file.is_relative_to(folder):
        raise UserError(
            f"{place}: the {what} {shorten(name)} is outside of {root}. Put it into that folder, and write its path "
            "relative to it."
        )
    if not is_file:
        raise UserError(f"{place}: there is no {what} {shorten(name)} in {root}. Add the file, or remove the row.")
    return file


def check_class(found: Found, classes: Sequence[str]) -> None:
    """Check that the label of an example, if any, is one of the classes.

    Raises:
        UserError: it is not.
    """
    if found.label is not None and found.label not in classes:
        raise UserError(
            f"{found.place}: the class {shorten(found.label)} is not one of {shorten(list(classes))}. Correct it, or "
            "list all classes in task.format.choices."
        )


def article(noun: str) -> str:
    """Return a noun with its indefinite article.

    >>> article("image"), article("recording")
    ('an image', 'a recording')
    """
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
