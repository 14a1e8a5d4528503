"""Read annotations in the XML format of Pascal VOC (Everingham et al., IJCV 2010): one file per image.

A box, `bndbox`, is the first and the last pixel in each direction, and the pixel in the corner is (1, 1): the left side
is xmin - 1, and the right side is xmax. Objects that are marked as difficult are kept.

Every child `object` of the root has one `name` and one `bndbox` of its own; those of parts of it are ignored. The size
of the image, `size`, may be left out.

A document type is refused, and with it entities: they can make a short file expand without end, or name other files.
"""

import contextlib
from pathlib import Path
from typing import NamedTuple, NoReturn, cast
from xml.etree import ElementTree
from xml.parsers import expat

from fedcollm.config import FormatConfig
from fedcollm.data.cells import composed
from fedcollm.data.labelled_images import LabelledImage, top_folder
from fedcollm.data.media_files import folder_inside, inside
from fedcollm.data.parts import PARTS
from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import shorten
from fedcollm.modalities.vision.boxes import Box
from fedcollm.modalities.vision.images import SUFFIXES

#: Largest size of an annotation that is read.
MOST_BYTES = 2**24

_SIDES = ("xmin", "ymin", "xmax", "ymax")


class _Annotation(NamedTuple):
    """What an annotation says: the objects, and the width and the height of the image in pixels if it states them."""

    boxes: tuple[Box, ...] = ()
    size: tuple[int | None, int | None] = (None, None)


def voc_classes(file: Path, root: Path) -> list[str]:
    """Return the names of all objects of the images that a list names, sorted.

    Raises:
        UserError: an annotation is missing or invalid.
    """
    return sorted({box.label for name in _names(file) for box in _annotation(root, name, file).boxes})


def voc_images(file: Path, root: Path, format: FormatConfig) -> list[LabelledImage]:
    """Return the images that a list names, with their boxes.

    Args:
        file: the list, a name per line. What follows the name in its line is ignored.
        root: the directory of the data.
        format: not used, since clients are the folders that names begin with.

    Raises:
        UserError: an annotation is missing or invalid, or an image is missing.
    """
    folder = folder_inside(root, "JPEGImages", "images")
    images: list[LabelledImage] = []
    for name in _names(file):
        known = _annotation(root, name, file) if file.stem not in PARTS["unlabelled"] else _Annotation()
        own = _image(folder, name, file)
        images.append(LabelledImage(f"{file}, {name}", name, folder, own, known.boxes, 0, top_folder(name), known.size))
    return images


def _names(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: can't be read ({error}). Give a list of names of images, one per line.") from None
    return [line.split()[0] for line in lines if line.strip()]


def _image(folder: Path, name: str, file: Path) -> str:
    """Return the image of this name, relative to its folder."""
    names = [name + suffix for suffix in SUFFIXES] + [name + suffix.upper() for suffix in SUFFIXES]
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return name  # refused where it is opened
    found: list[Path] = []
    for one in (folder / one for one in names):
        with contextlib.suppress(OSError, ValueError):  # longer than a file's name may be: there is none
            if one.is_file() and not any(one.samefile(other) for other in found):  # if case is no matter, it can be
                found.append(one)
    if len(found) > 1:
        raise UserError(
            f"{file}, {name}: there are both {found[0].name} and {found[1].name} in {folder}. Keep only one of them."
        )
    return found[0].relative_to(folder).as_posix() if found else f"{name}.jpg"


def _annotation(root: Path, name: str, file: Path) -> _Annotation:
    """Return what the annotation of an image says.

    Raises:
        UserError: it is missing or invalid.
    """
    folder = folder_inside(root, "Annotations", "annotations")
    place = inside(folder, f"{name}.xml", f"{file}, {name}", "annotation")
    parsed = _parsed(place)
    if parsed.tag != "annotation":
        raise UserError(f"{place}: it begins with {shorten(parsed.tag)}. Give an annotation, which has <annotation>.")
    objects = parsed.findall("object")
    if len(objects) != sum(1 for _ in parsed.iter("object")):
        raise UserError(f"{place}: an object is inside of another element. Put it directly into <annotation>.")
    size = _size(parsed, str(place))
    return _Annotation(tuple(_box(one, str(place)) for one in objects), size)


def _size(annotation: ElementTree.Element, place: str) -> tuple[int | None, int | None]:
    if annotation.find("size") is None:
        return None, None
    size = _only(annotation, "size", "the annotation", place)
    return _side(size, "width", place), _side(size, "height", place)


def _side(size: ElementTree.Element, tag: str, place: str) -> int | None:
    """Return the width or the height that an annotation states, in pixels; None if it does not."""
    text = (size.findtext(tag) or "").strip()
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"{place}: {tag} is {shorten(text)}. Write a whole number of pixels, or leave it out."
        ) from None


def _only(parent: ElementTree.Element, tag: str, what: str, place: str) -> ElementTree.Element:
    """Return the only child with a tag."""
    found = parent.findall(tag)
    if not found:
        raise UserError(f"{place}: {what} has no {tag}. Add it, or remove {what}.")
    if len(found) > 1:
        raise UserError(f"{place}: {what} has {len(found)} times {tag}. Keep only one of them.")
    return found[0]


def _box(found: ElementTree.Element, place: str) -> Box:
    label = composed(_only(found, "name", "an object", place).text or "").strip()
    if not label:
        raise UserError(f"{place}: the name of an object is empty. Add it, or remove the object.")
    sides = _only(found, "bndbox", "an object", place)
    texts = [_only(sides, side, f"the bndbox of {shorten(label)}", place).text for side in _SIDES]
    try:
        left, top, right, bottom = (float(cast(str, text)) for text in texts)
    except (TypeError, ValueError):
        raise UserError(
            f"{place}: the bndbox of {shorten(label)} is {shorten(texts)}. Write xmin, ymin, xmax and ymax, in pixels."
        ) from None
    return Box(left - 1, top - 1, right, bottom, label)


def _parsed(file: Path) -> ElementTree.Element:
    """Return the root of an XML file, without resolving anything that the file may refer to.

    Raises:
        UserError: it is too large or no XML, or has a document type.
    """
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def refuse(*declared: object) -> NoReturn:
        raise UserError(f"{file}: it has a document type, whose entities are not read. Remove <!DOCTYPE ...>.")

    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    try:
        if file.stat().st_size > MOST_BYTES:
            raise UserError(f"{file}: it has more than {MOST_BYTES:,} bytes. Give one annotation per image.")
        parser.Parse(file.read_bytes(), True)
    except (OSError, expat.ExpatError, LookupError, ValueError) as error:
        raise UserError(f"{file}: not valid XML ({error}). Give annotations in the format of Pascal VOC.") from None
    return builder.close()
