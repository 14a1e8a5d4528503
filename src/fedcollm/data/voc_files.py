"""Read annotations in the XML format of Pascal VOC (Everingham et al., IJCV 2010): one file per image.

A box, `bndbox`, is the first and the last pixel in each direction, and the pixel in the corner is (1, 1): the left side
is xmin - 1, and the right side is xmax. Objects that are marked as difficult are kept.

A document type is refused, and with it entities: they can make a short file expand without end, or name other files.
"""

from pathlib import Path
from typing import NoReturn, cast
from xml.etree import ElementTree
from xml.parsers import expat

from fedcollm.config import FormatConfig
from fedcollm.data.labelled_images import LabelledImage, top_folder
from fedcollm.data.media_files import inside
from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import shorten
from fedcollm.modalities.vision.boxes import Box
from fedcollm.modalities.vision.images import SUFFIXES

#: Largest size of an annotation that is read.
MOST_BYTES = 2**24

_SIDES = ("xmin", "ymin", "xmax", "ymax")


def voc_classes(file: Path, root: Path) -> list[str]:
    """Return the names of all objects of the images that a list names, sorted.

    Raises:
        UserError: an annotation is missing or invalid.
    """
    return sorted({box.label for name in _names(file) for box in _boxes(root, name, file)})


def voc_images(file: Path, root: Path, format: FormatConfig) -> list[LabelledImage]:
    """Return the images that a list names, with their boxes.

    Args:
        file: the list, a name per line. What follows the name in its line is ignored.
        root: the directory of the data.
        format: not used, since clients are the folders that names begin with.

    Raises:
        UserError: an annotation is missing or invalid, or an image is missing.
    """
    labelled = file.stem != "unlabelled"
    return [
        LabelledImage(
            f"{file}, {name}",
            name,
            root / "JPEGImages",
            _image(root / "JPEGImages", name, file),
            tuple(_boxes(root, name, file)) if labelled else (),
            0,
            top_folder(name),
        )
        for name in _names(file)
    ]


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
    return next((one for one in names if (folder / one).is_file()), f"{name}.jpg")


def _boxes(root: Path, name: str, file: Path) -> list[Box]:
    place = inside(root / "Annotations", f"{name}.xml", f"{file}, {name}", "annotation")
    return [_box(one, str(place)) for one in _parsed(place).iter("object")]


def _box(found: ElementTree.Element, place: str) -> Box:
    label, place_of = (found.findtext("name") or "").strip(), found.find("bndbox")
    if not label or place_of is None:
        raise UserError(f"{place}: an object has no {'bndbox' if label else 'name'}. Add it, or remove the object.")
    texts = [place_of.findtext(side) for side in _SIDES]
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
