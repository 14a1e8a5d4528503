"""What the user's own images and recordings have in common: tables that name files, and where those files may be.

No path leaves the folder of the data, also not by a symbolic link.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

from fedcollm.config import FormatConfig
from fedcollm.data.answers import Asked, answer_indices
from fedcollm.data.cells import cell_text, cell_value, composed, is_empty
from fedcollm.data.choices import listed
from fedcollm.data.parts import find_parts, labelled_part
from fedcollm.data.rows import Row, part_rows, with_answers
from fedcollm.errors import UserError
from fedcollm.modalities.facts import class_fault
from fedcollm.modalities.jsonl import shorten
from fedcollm.modalities.plain_text import check_text


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


def listed_classes(path: Path, format: FormatConfig, examples: str) -> tuple[str, ...]:
    """Return the classes that a format lists, or else all answers of the training tables (or public ones), sorted.

    Args:
        path: as in `find_parts`.
        format: its column of answers, and its choices.
        examples: what the examples are, for the message.

    Raises:
        UserError: one of these tables can't be read, or there are fewer than two classes.
    """
    if isinstance(format.choices, list):
        return check_names(path, [composed(choice).strip() for choice in format.choices], examples)
    key, column, files = "task.format.answer", str(format.answer), labelled_part(find_parts(path).files)
    rows, _ = _labelled(part_rows(files, format, [(column, key)]), column, key, format, files)
    return check_names(path, sorted({cell_text(row.cells, column, row.place, key) for row in rows}), examples)


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


def found_in_parts(
    path: Path, column: Column, format: FormatConfig, label: str
) -> tuple[dict[str, list[Found]], list[str]]:
    """Return what each row of each part names, and notes about the files and rows that are left out.

    Args:
        path: as in `find_parts`.
        column: the column of file names, or of the contents of files.
        format: names the columns, and says how tables are read. Only the training data, which is the clients', needs
            the column of groups.
        label: the key of `format` that names the column of labels, which the unlabelled part does not need.

    Raises:
        UserError: a table or a row is invalid, or a file is missing or outside of the folder.
    """
    parts, ungrouped = find_parts(path), format.model_copy(update={"group": None})
    found, notes = dict[str, list[Found]](), list(parts.notes)
    for part, files in parts.files.items():
        form = format if part == "train" else ungrouped
        found[part], told = found_in(files, column, form, None if part == "unlabelled" else label)
        notes += told
    return found, notes


def found_in(
    files: Sequence[Path], column: Column, format: FormatConfig, label: str | None
) -> tuple[list[Found], list[str]]:
    """Return what each row of a part names, and notes about rows that are left out.

    Args:
        files: the tables of the part; the paths in a table are relative to its folder.
        column: the column of file names, or of the contents of files.
        format: names the columns, and says how tables are read.
        label: the key of `format` that names the column of labels; None if there are none.

    Raises:
        UserError: a table or a row is invalid, or a file is missing or outside of the folder.
    """
    key, labels = f"task.format.{label}", None if label is None else str(getattr(format, label))
    named = {column.key: column.name, key: labels, "task.format.group": format.group}
    asked = [(name, which) for which, name in named.items() if name is not None]
    rows, notes = part_rows(files, format, asked), list[str]()
    if labels is not None:
        rows, notes = _labelled(rows, labels, key, format, files)
    found = [
        Found(
            place=row.place,
            id=row.id,
            source=_source(row, column),
            label=None if labels is None else cell_text(row.cells, labels, row.place, key),
            group=None if format.group is None else cell_text(row.cells, format.group, row.place, "task.format.group"),
        )
        for row in rows
    ]
    return found, notes


def unlabelled(rows: Sequence[Row], column: Column) -> list[Found]:
    """Return what each row names, for a trained model to look at or listen to.

    Args:
        rows: the rows; the paths in a table are relative to its folder.
        column: the column of file names, or of the contents of files.

    Raises:
        UserError: a file is missing, or outside of the folder of its table.
    """
    return [Found(row.place, row.id, _source(row, column), None, None) for row in rows]


def _labelled(
    rows: Sequence[Row], column: str, key: str, format: FormatConfig, files: Sequence[Path]
) -> tuple[list[Row], list[str]]:
    """Return the rows that have a label, and a note if others are left out."""

    def is_labelled(row: Row) -> bool:
        return cell_value(row.cells, column, row.place, key) is not None

    return with_answers(rows, is_labelled, f"column {column!r} ({key})", format.skip_unanswered, files)


def _source(row: Row, column: Column) -> Path | bytes:
    """Return the file that a row names, or its content."""
    value, what = row.cells.get(composed(column.name)), f"{row.place}: column {column.name!r} ({column.key})"
    if isinstance(value, dict):  # as `datasets` stores a file
        stored = cast("dict[str, Any]", value)
        value = stored.get("bytes") or stored.get("path")
    if is_empty(value):
        raise UserError(f"{what} is empty. Fill it in, or remove the row.")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise UserError(
            f"{what} holds {shorten(value)}. It needs the path of {article(column.what)} file, or its bytes."
        )
    check_text(value, what)
    return inside(row.file.parent, value, row.place, column.what)


def with_classes(
    found: Mapping[str, Sequence[Found]], format: FormatConfig, classes: Sequence[str]
) -> tuple[dict[str, list[Found]], list[str]]:
    """Return what rows name with the names of their classes for the answers, and notes about how these were read.

    Args:
        found: part to what its rows name.
        format: says how an answer names its class, if it lists the classes. Otherwise answers are their names.
        classes: names of the classes.

    Raises:
        UserError: answers are read in no single way, see `answer_indices`, or are no classes.
    """
    rows = [one for part in found.values() for one in part if one.label is not None]
    if (
        not isinstance(format.choices, list)
        or format.answer is None
        or (format.answer_is == "auto" and all(row.label in classes for row in rows))
    ):
        for row in rows:
            check_class(row, classes)
        return {part: list(ones) for part, ones in found.items()}, []
    choices = listed(format.choices, "task.format.choices")
    asked = [Asked(row.place, row.label, str(row.label), choices, listed=True) for row in rows]
    indices, notes = answer_indices(asked, format.answer_is, str(format.answer))
    names = iter([choices.texts[index] for index in indices])
    return {
        part: [one if one.label is None else one._replace(label=next(names)) for one in ones]
        for part, ones in found.items()
    }, notes


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
