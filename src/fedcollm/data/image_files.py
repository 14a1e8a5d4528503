"""Read the user's own images: a folder of class folders, or a table with a column of image files.

Every image is decoded once here, so that a broken one is named before anything is trained, and duplicates are found.
No path leaves the folder of the data, also not by a symbolic link.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedcollm.config import FormatConfig
from fedcollm.data.cells import composed
from fedcollm.data.media_files import Column, Found, check_names, found_in_parts, inside, listed_classes, with_classes
from fedcollm.data.partition import check_classes
from fedcollm.data.parts import PARTS, SERVER_PARTS, choose, labelled_part, lacks_examples
from fedcollm.data.pool import Pool
from fedcollm.data.rows import check_ids, label_notes
from fedcollm.data.unread import check_no_file
from fedcollm.errors import UserError
from fedcollm.modalities.plain_text import check_text
from fedcollm.modalities.vision.files import ImageFile
from fedcollm.modalities.vision.images import SUFFIXES as IMAGE_SUFFIXES
from fedcollm.progress import track


def find_classes(path: Path, format: FormatConfig) -> tuple[str, ...]:
    """Return the classes of a user's images: those that are listed, or else all of the training data, sorted.

    Where there is no training data, as on the server of a deployment, they are those of the public data.

    Args:
        path: as in `load_images`.
        format: which columns are the image and its label.

    Raises:
        UserError: the training data can't be read, or has fewer than two classes.
    """
    if format.image is None and not isinstance(format.choices, list):
        folders = _folders(labelled_part(_part_folders(path)[0]))
        return check_names(path, sorted({composed(folder.name) for folder in folders}), "images")
    return listed_classes(path, format, "images")


def load_images(path: Path, format: FormatConfig, classes: Sequence[str], several_classes: bool = True) -> Pool:
    """Return the examples of a user's own images.

    Args:
        path: without `format.image`, a directory with a folder `train` of class folders, and possibly such folders
            `test` (or `validation`) and `public`, and a folder `unlabelled` of images; the names are those of
            `parts.PARTS`. Otherwise a table with a row per image, or a directory of such tables.
        format: which columns are the image, its label and its group.
        classes: names of the classes.
        several_classes: whether to refuse training data with a single class. The data of one client may have one.

    Raises:
        UserError: a file, an image, a label or the format is invalid.
    """
    found, notes = _found_in_tables(path, format) if format.image is not None else _found_in_folders(path)
    found, told = with_classes(found, format, classes)
    parts = {part: _examples(part, ones, tuple(classes)) for part, ones in found.items()}
    if several_classes and "train" in parts:
        check_classes(parts["train"], str(path))
    return Pool(**{"train": []} | parts, notes=[*notes, *told, *label_notes(classes)])


def _found_in_tables(path: Path, format: FormatConfig) -> tuple[dict[str, list[Found]], list[str]]:
    return found_in_parts(path, Column("task.format.image", str(format.image), "image"), format, "answer")


def _found_in_folders(path: Path) -> tuple[dict[str, list[Found]], list[str]]:
    folders, notes = _part_folders(path)
    found: dict[str, list[Found]] = {}
    for part, folder in folders.items():
        found[part] = list(_in_folders(path, folder) if part != "unlabelled" else _in_folder(path, folder, None))
        if not found[part]:
            raise UserError(f"{folder} has no images. Add some ({', '.join(IMAGE_SUFFIXES)}), or remove it.")
    return found, notes


def _part_folders(path: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the folder of each part, and notes; raise UserError if there is no training data, or a part has two."""
    entries = sorted(path.iterdir()) if path.is_dir() else []
    found, notes = choose({entry.name: entry for entry in entries if entry.is_dir()}, path)
    if lacks_examples(found):
        raise UserError(
            f"task.path: {path} has no folder train. Put the training images into train/CLASS/, one folder per class, "
            f"or set task.format.image to the column of a table that names image files; {SERVER_PARTS}."
        )
    check_no_file(path, [name for names in PARTS.values() for name in names])
    return found, notes


def _examples(part: str, found: Sequence[Found], classes: tuple[str, ...]) -> list[ImageFile]:
    """Return the examples of one part, each decoded once."""
    examples = [_example(one, classes) for one in track(found, f"reading images of {part}", total=len(found))]
    check_ids(examples, [one.place for one in found])
    return examples


def _example(found: Found, classes: tuple[str, ...]) -> ImageFile:
    target = None if found.label is None else classes.index(found.label)
    try:
        return ImageFile.read(found.id, found.source, classes, target, found.group)
    except UserError as error:
        raise error if str(found.source) == found.place else UserError(f"{found.place}: {error}") from None


def _in_folders(root: Path, place: Path) -> Iterator[Found]:
    for folder in _folders(place):
        yield from _in_folder(root, folder, composed(folder.name))


def _folders(place: Path) -> list[Path]:
    """Return the class folders of a part, in the order of their names; hidden ones are left out."""
    entries = [entry for entry in sorted(place.iterdir()) if not _is_hidden(entry)]
    if files := [entry for entry in entries if not entry.is_dir()]:
        raise UserError(f"{files[0]} is in no class folder. Move it to {place.name}/CLASS/, or remove it.")
    for entry in entries:
        check_text(entry.name, f"{place}: the name of a class folder")
    return entries


def _in_folder(root: Path, folder: Path, label: str | None) -> Iterator[Found]:
    for file in sorted(folder.iterdir()):
        if _is_hidden(file):
            continue
        check_text(file.name, f"{folder}: the name of an image")
        if not file.is_file() or file.suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(f"{file} is no image file ({', '.join(IMAGE_SUFFIXES)}). Convert it, or remove it.")
        name = file.relative_to(root).as_posix()
        yield Found(str(file), name, inside(root, name, str(file), "image"), label, None)


def _is_hidden(entry: Path) -> bool:
    """Return whether an operating system put an entry there by itself, as for its previews."""
    return entry.name.startswith(".") or entry.name in ("Thumbs.db", "desktop.ini")
