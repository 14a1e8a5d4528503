"""Read the user's own images: a folder of class folders, or a table with a column of image files.

Every image is decoded once here, so that a broken one is named before anything is trained, and duplicates are found.
No path leaves the folder of the data, also not by a symbolic link.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

from fedcollm.config import FormatConfig
from fedcollm.data.files import SUFFIXES, cell_text, cell_value, check_ids, file_rows, find_part
from fedcollm.data.partition import check_classes
from fedcollm.data.pool import Pool
from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import shorten
from fedcollm.modalities.vision.files import ImageFile
from fedcollm.modalities.vision.images import SUFFIXES as IMAGE_SUFFIXES
from fedcollm.progress import track

#: Part of a pool to the names that its folder or file may have.
_PARTS = {"train": ("train",), "test": ("test", "dev", "val"), "public": ("public",), "unlabelled": ("unlabelled",)}


class _Found(NamedTuple):
    """An image that the data names: its place for messages, its id, the file or its content, its label and group."""

    place: str
    id: str
    source: Path | bytes
    label: str | None
    group: str | None


def find_classes(path: Path, format: FormatConfig) -> tuple[str, ...]:
    """Return the classes of a user's images: those that are listed, or else all of the training data, sorted.

    Args:
        path: as in `load_images`.
        format: which columns are the image and its label.

    Raises:
        UserError: the training data can't be read, or has fewer than two classes.
    """
    if isinstance(format.choices, list):
        classes = tuple(choice.strip() for choice in format.choices)
    elif format.image is None:
        classes = tuple(sorted(folder.name for folder in _folders(_train(path, format))))
    else:
        rows = file_rows(_train(path, format))
        classes = tuple(
            sorted({cell_text(row, str(format.answer), place, "task.format.answer") for place, row in rows})
        )
    if len(classes) < 2 or len(set(classes)) < len(classes) or not all(classes):
        raise UserError(
            f"task.path: {path} has the classes {shorten(list(classes))}. Give at least two distinct classes of images."
        )
    return classes


def load_images(path: Path, format: FormatConfig, classes: Sequence[str], several_classes: bool = True) -> Pool:
    """Return the examples of a user's own images.

    Args:
        path: without `format.image`, a directory with a folder `train` of class folders, and possibly such folders
            `test` (or `dev` or `val`) and `public`, and a folder `unlabelled` of images. Otherwise a CSV, JSONL or
            Parquet file with a row per image, or a directory of such files with these names.
        format: which columns are the image, its label and its group.
        classes: names of the classes.
        several_classes: whether to refuse training data with a single class. The data of one client may have one.

    Raises:
        UserError: a file, an image, a label or the format is invalid.
    """
    parts: dict[str, list[ImageFile] | None] = {}
    for part, names in _PARTS.items():
        place = _train(path, format) if part == "train" else _part(path, format, names)
        parts[part] = None if place is None else _examples(path, place, format, tuple(classes), part != "unlabelled")
    train = parts.pop("train") or []
    if several_classes:
        check_classes(train, str(path))
    return Pool(train, **parts)


def _train(path: Path, format: FormatConfig) -> Path:
    """Return the file or folder of the training data; raise UserError if there is none."""
    found = _part(path, format, _PARTS["train"]) if path.is_dir() else path
    if format.image is None and (found is None or not found.is_dir()):
        raise UserError(
            f"task.path: {path} has no folder train. Put the training images into train/CLASS/, one folder per class, "
            "or set task.format.image to the column of a table that names image files."
        )
    if found is None or not found.exists():
        names = ", ".join("train" + suffix for suffix in SUFFIXES)
        raise UserError(f"task.path: {path} does not exist or has no train file. Give a file, or name it {names}.")
    return found


def _part(path: Path, format: FormatConfig, names: Sequence[str]) -> Path | None:
    """Return the file or folder of a part; raise UserError if there are two."""
    if not path.is_dir():
        return None
    if format.image is None:
        found = [path / name for name in names if (path / name).is_dir()]
    else:
        found = [file for name in names if (file := find_part(path, name)) is not None]
    if len(found) > 1:
        raise UserError(f"{path}: there are both {found[0].name} and {found[1].name}. Keep only one of them.")
    return found[0] if found else None


def _examples(
    root: Path, place: Path, format: FormatConfig, classes: tuple[str, ...], labelled: bool
) -> list[ImageFile]:
    """Return the examples of one part, each decoded once."""
    if format.image is not None:
        found = list(_in_table(place, format, labelled))
    else:
        found = list(_in_folders(root, place) if labelled else _in_folder(root, place, None))
    if not found:
        raise UserError(f"{place} has no images. Add some ({', '.join(IMAGE_SUFFIXES)}), or remove it.")
    examples = [_example(one, classes) for one in track(found, f"reading images of {place.name}", total=len(found))]
    check_ids(examples, [one.place for one in found])
    return examples


def _example(found: _Found, classes: tuple[str, ...]) -> ImageFile:
    if found.label is not None and found.label not in classes:
        raise UserError(
            f"{found.place}: the class {shorten(found.label)} is not one of {shorten(list(classes))}. Correct it, or "
            "list all classes in task.format.choices."
        )
    target = None if found.label is None else classes.index(found.label)
    try:
        return ImageFile.read(found.id, found.source, classes, target, found.group)
    except UserError as error:
        raise error if str(found.source) == found.place else UserError(f"{found.place}: {error}") from None


def _in_folders(root: Path, place: Path) -> Iterator[_Found]:
    for folder in _folders(place):
        yield from _in_folder(root, folder, folder.name)


def _folders(place: Path) -> list[Path]:
    """Return the class folders of a part, in the order of their names; hidden ones are left out."""
    entries = [entry for entry in sorted(place.iterdir()) if not _is_hidden(entry)]
    if files := [entry for entry in entries if not entry.is_dir()]:
        raise UserError(f"{files[0]} is in no class folder. Move it to {place.name}/CLASS/, or remove it.")
    return entries


def _in_folder(root: Path, folder: Path, label: str | None) -> Iterator[_Found]:
    for file in sorted(folder.iterdir()):
        if _is_hidden(file):
            continue
        if not file.is_file() or file.suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(f"{file} is no image file ({', '.join(IMAGE_SUFFIXES)}). Convert it, or remove it.")
        name = file.relative_to(root).as_posix()
        yield _Found(str(file), name, inside(root, name, str(file)), label, None)


def _is_hidden(entry: Path) -> bool:
    """Return whether an operating system put an entry there by itself, as for its previews."""
    return entry.name.startswith(".") or entry.name in ("Thumbs.db", "desktop.ini")


def _in_table(file: Path, format: FormatConfig, labelled: bool) -> Iterator[_Found]:
    for position, (place, row) in enumerate(file_rows(file), start=1):
        column = str(format.image)
        value = cell_value(row, column, place, "task.format.image")
        content = cast("dict[str, Any]", value).get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, (str, bytes)):
            raise UserError(
                f"{place}: column {column!r} (task.format.image) holds {shorten(value)}. It needs the path of an image "
                "file, or its bytes."
            )
        yield _Found(
            place=place,
            id=cell_text(row, "id", place, "id") if "id" in row else str(position),
            source=content if isinstance(content, bytes) else inside(file.parent, content, place),
            label=cell_text(row, str(format.answer), place, "task.format.answer") if labelled else None,
            group=None if format.group is None else cell_text(row, format.group, place, "task.format.group"),
        )


def inside(root: Path, name: str, place: str, what: str = "image") -> Path:
    """Return a file in a folder, given its relative path.

    Args:
        root: the folder.
        name: the path, relative to the folder.
        place: where the data names the file, for messages.
        what: what the file is, for messages.

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
