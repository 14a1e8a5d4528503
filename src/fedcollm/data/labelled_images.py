"""An image with boxes as the user's files describe it, before it is read."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fedcollm.modalities.vision.boxes import Box


@dataclass(frozen=True)
class LabelledImage:
    """An image that the data names, and its boxes.

    Attributes:
        place: where the data names it, for messages.
        id: id of the example.
        folder: the folder that the file must be in.
        file: path of the file, relative to the folder.
        boxes: the objects.
        crowds: number of regions of many objects, which are left out.
        group: the client that it belongs to, if the data says so.
        size: width and height in pixels as the data states them; None where it does not.
    """

    place: str
    id: str
    folder: Path
    file: str
    boxes: tuple[Box, ...] = ()
    crowds: int = 0
    group: str | None = None
    size: tuple[int | None, ...] = (None, None)


def top_folder(file: str) -> str | None:
    """Return the folder that a relative path begins with; None if it has none.

    >>> top_folder("ward 1/a.jpg"), top_folder("a.jpg")
    ('ward 1', None)
    """
    parts = PurePosixPath(file).parts
    return parts[0] if len(parts) > 1 else None
