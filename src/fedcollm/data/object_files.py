"""Read the user's own images with boxes, in the formats of COCO and of Pascal VOC.

COCO: a directory with `train.json` and possibly `test.json` (or `val.json`), `public.json` and `unlabelled.json`; the
names are those of `parts.PARTS`. The images are in its folder `images` if there is one, or else beside these files. A
client is what an image's key `task.format.group` says, or else the folder that its `file_name` begins with.

Pascal VOC: a directory with `ImageSets/Main/train.txt` and such lists of names as above, `Annotations/NAME.xml` and
`JPEGImages/NAME.jpg` (or another suffix of an image). A client is the folder that a name begins with.

Every image is decoded once here. No path leaves the folder of the data, also not by a symbolic link.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fedcollm.config import FormatConfig
from fedcollm.data.cells import composed
from fedcollm.data.coco_files import coco_classes, coco_images
from fedcollm.data.labelled_images import LabelledImage
from fedcollm.data.media_files import inside
from fedcollm.data.parts import PARTS, SERVER_PARTS, choose, labelled_part, lacks_examples
from fedcollm.data.pool import Pool
from fedcollm.data.rows import check_ids
from fedcollm.data.voc_files import voc_classes, voc_images
from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import shorten
from fedcollm.modalities.vision.boxes import NOTHING, DetectionExample
from fedcollm.progress import track


@dataclass(frozen=True)
class _Layout:
    """Where the files of a format are, and how they are read.

    Attributes:
        lists: the folder of the files that list a part's images, relative to the data.
        suffix: the suffix of these files.
        images: returns the images of such a file, given it, the data's folder, and the format.
        classes: returns the names of the classes of such a file, given it and the data's folder.
    """

    lists: str
    suffix: str
    images: Callable[[Path, Path, FormatConfig], list[LabelledImage]]
    classes: Callable[[Path, Path], list[str]]


#: `task.format.boxes` to its layout.
_LAYOUTS: Mapping[str, _Layout] = {
    "coco": _Layout(".", ".json", coco_images, coco_classes),
    "voc": _Layout("ImageSets/Main", ".txt", voc_images, voc_classes),
}


def find_object_classes(path: Path, format: FormatConfig) -> tuple[str, ...]:
    """Return the classes of a user's objects: those that are listed, or else all of the training data.

    Where there is no training data, as on the server of a deployment, they are those of the public data.

    Args:
        path: as in `load_objects`.
        format: says which format the files have, and possibly the classes.

    Raises:
        UserError: the training data can't be read, or has no class.
    """
    if isinstance(format.choices, list):
        classes = [composed(choice).strip() for choice in format.choices]
    else:
        layout = _layout(format)
        classes = layout.classes(labelled_part(_parts(path, layout)[0]), path)
    if NOTHING in classes:
        raise UserError(
            f"task.path: {path} has a class {NOTHING!r}, which means that there is no object. Rename the class."
        )
    if not classes or len(set(classes)) < len(classes) or not all(classes):
        raise UserError(
            f"task.path: {path} has the classes {shorten(classes)}. Give at least one class, and each only once."
        )
    return tuple(classes)


def load_objects(path: Path, format: FormatConfig, classes: Sequence[str], needs_objects: bool = True) -> Pool:
    """Return the examples of a user's own images with boxes.

    Args:
        path: the directory of the data; see the description of this module.
        format: which of the formats it has, and where the group is.
        classes: names of the classes.
        needs_objects: whether to refuse training or test data without any object. The data of one client may have none.

    Raises:
        UserError: a file, an image, a box or a class is invalid, or no image of the training or test data has a box.
    """
    files, notes = _parts(path, _layout(format))
    parts: dict[str, list[DetectionExample]] = {}
    for part, file in files.items():
        parts[part] = _examples(path, file, format, classes, part != "unlabelled")
        if needs_objects:
            _check_boxes(part, file, parts[part])
    return Pool(**{"train": []} | parts, notes=notes)


def _check_boxes(part: str, file: Path, examples: Sequence[DetectionExample]) -> None:
    """Check that there is something to learn, or to score.

    Raises:
        UserError: there is no box in the training data, or in the test data.
    """
    missed = {"train": "no object can be learned", "test": "nothing can be scored"}.get(part)
    if missed and not any(example.boxes for example in examples):
        raise UserError(
            f"{file}: no image of the {part} set has a box with an area: {missed}. Add boxes, or give other images."
        )


def _layout(format: FormatConfig) -> _Layout:
    return _LAYOUTS[str(format.boxes)]


def _parts(path: Path, layout: _Layout) -> tuple[dict[str, Path], list[str]]:
    """Return the file of each part, and notes; raise UserError if there is no training data, or two files of a part."""
    folder = path / layout.lists
    names = [name for names in PARTS.values() for name in names]
    files = {name: folder / f"{name}{layout.suffix}" for name in names}
    found, notes = choose({name: file for name, file in files.items() if file.is_file()}, path)
    if lacks_examples(found):
        wanted = (PurePosixPath(layout.lists) / f"train{layout.suffix}").as_posix()
        raise UserError(f"task.path: {path} has no file {wanted}. Give the directory that has it; {SERVER_PARTS}.")
    return found, notes


def _examples(
    root: Path, file: Path, format: FormatConfig, classes: Sequence[str], labelled: bool
) -> list[DetectionExample]:
    """Return the examples of one part, each decoded once."""
    images = _layout(format).images(file, root, format)
    if not images:
        raise UserError(f"{file} lists no images. Add some, or remove it.")
    examples = [_example(one, classes, labelled) for one in track(images, f"reading {file.name}", total=len(images))]
    check_ids(examples, [one.place for one in images])
    return examples


def _example(image: LabelledImage, classes: Sequence[str], labelled: bool) -> DetectionExample:
    source = inside(image.folder, image.file, image.place, "image")
    boxes = image.boxes if labelled else None
    try:
        read = DetectionExample.read(image.id, source, classes, boxes, image.group, image.crowds if labelled else 0)
    except UserError as error:
        raise UserError(f"{image.place}: {error}") from None
    _check_size(image, read)
    return read


def _check_size(image: LabelledImage, read: DetectionExample) -> None:
    """Check that an image has the size that the data states, since its boxes are in pixels of that size.

    Raises:
        UserError: it has another one.
    """
    own = (read.width, read.height)
    stated = tuple(side if known is None else known for side, known in zip(own, image.size, strict=True))
    if stated == own:
        return
    is_stored = "rotated" in read.rules and stated == own[::-1]
    raise UserError(
        f"{image.place}: the stated size is {stated[0]} x {stated[1]} pixels, but {shorten(image.file)} has {own[0]} x "
        f"{own[1]}. "
        + (
            "The EXIF data of the file turns the image: give the boxes and the size in pixels of the upright image."
            if is_stored
            else "Give the image that was annotated, or correct the size and the boxes."
        )
    )
