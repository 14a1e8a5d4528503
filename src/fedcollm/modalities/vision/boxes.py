"""Images with the boxes of their objects: the examples of detection.

Boxes are in pixels of the upright image (as `images.decode` returns it). A box that reaches outside of its image is
clipped, and one without area, after clipping, is dropped; so is a region of many objects. These rules are counted
(`told`). An image without boxes is kept, and teaches that there is nothing to see.
"""

import base64
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from PIL import Image

from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import shorten
from fedcollm.modalities.vision.files import ImageFile
from fedcollm.modalities.vision.images import decode, fingerprint

#: Name of a rule to how the notes on the data say that it was applied to some boxes.
BOX_RULES: Mapping[str, str] = {
    "clipped": "reach outside of their image and were clipped",
    "no_area": "have no area and were dropped",
    "crowd": "are regions of many objects (iscrowd) and were dropped",
}

#: The label, for partitioning, of an image without boxes.
NOTHING = "(nothing)"


class Box(NamedTuple):
    """An object: its sides in pixels, with the origin at the top left corner of the image, and its class."""

    left: float
    top: float
    right: float
    bottom: float
    label: str

    @property
    def area(self) -> float:
        """Area in square pixels; 0 if a side has no length."""
        return max(self.right - self.left, 0.0) * max(self.bottom - self.top, 0.0)

    def clipped(self, width: float, height: float) -> "Box":
        """Return the part of the box that is inside of an image of this size."""
        left, right = (min(max(x, 0.0), width) for x in (self.left, self.right))
        top, bottom = (min(max(y, 0.0), height) for y in (self.top, self.bottom))
        return Box(left, top, right, bottom, self.label)


@dataclass(frozen=True, eq=False)
class DetectionExample:
    """An image in a file, and the boxes of its objects.

    Attributes:
        id: id of the example, unique within its data.
        source: the file, or its content. It is decoded whenever a batch needs it.
        classes: names of the task's classes.
        boxes: the objects, or None if unlabelled. An empty tuple is a labelled image without objects.
        width: width of the upright image in pixels.
        height: its height in pixels.
        content: the fingerprint of the pixels, which tells duplicates apart.
        rules: names of the rules that changed the image (keys of `images.RULES`).
        group: natural client of the example, if the data has one.
        changed: name of a rule (key of `BOX_RULES`) to the number of boxes that it was applied to.
    """

    id: str
    source: Path | bytes
    classes: tuple[str, ...]
    boxes: tuple[Box, ...] | None
    width: int
    height: int
    content: str
    rules: tuple[str, ...] = ()
    group: str | None = None
    changed: Mapping[str, int] = field(default_factory=dict[str, int])

    @staticmethod
    def read(
        id: str,
        source: Path | bytes,
        classes: Sequence[str],
        boxes: Sequence[Box] | None,
        group: str | None = None,
        crowds: int = 0,
    ) -> "DetectionExample":
        """Return an example, after decoding its image once.

        Args:
            id: id of the example.
            source: the file, or its content.
            classes: names of the task's classes.
            boxes: the objects as the data gives them, or None if unlabelled.
            group: natural client of the example, if the data has one.
            crowds: number of regions of many objects that the data gives besides.

        Raises:
            UserError: the image is missing, broken or too large, a number of a box is not finite, or its class is not
                one of the task's.
        """
        name = f"image {id}" if isinstance(source, bytes) else str(source)
        image, rules = decode(source, name)
        for box in boxes or ():
            _check(box, name, classes)
        clipped = [box.clipped(image.width, image.height) for box in boxes or ()]
        kept = tuple(box for box in clipped if box.area > 0)
        changed = {
            "clipped": sum(one != other and other.area > 0 for one, other in zip(boxes or (), clipped, strict=True)),
            "no_area": len(clipped) - len(kept),
            "crowd": crowds,
        }
        own = None if boxes is None else kept
        size = (image.width, image.height)
        return DetectionExample(id, source, tuple(classes), own, *size, fingerprint(image), rules, group, changed)

    @property
    def label(self) -> str | None:
        """The most frequent class, of several the first one of the task; `NOTHING` without boxes; None if unlabelled.

        Partitions by label (Dirichlet, shards) go by this class.
        """
        if self.boxes is None:
            return None
        counts = Counter(box.label for box in self.boxes)
        return max(self.classes, key=lambda name: counts[name]) if counts else NOTHING

    @property
    def all_labels(self) -> tuple[str, ...]:
        """The class of each box."""
        return tuple(box.label for box in self.boxes or ())

    def without_label(self) -> "DetectionExample":
        """Return the same image without its boxes, of which nothing is known then."""
        return replace(self, boxes=None, changed={})

    def image(self) -> Image.Image:
        """Return the image in RGB.

        Raises:
            UserError: the file is not the one any more that was read at first.
        """
        return ImageFile(self.id, self.source, self.classes, None, self.content).image()

    def to_wire(self) -> Mapping[str, Any]:
        """Return plain values for cache keys; the fingerprint stands for the pixels."""
        boxes = None if self.boxes is None else [list(box) for box in self.boxes]
        values = {"id": self.id, "content": self.content, "boxes": boxes, "group": self.group}
        return {**values, "classes": list(self.classes)}

    def to_row(self) -> dict[str, Any]:
        """Return the example as plain values with the file in base64, for a line of JSON."""
        content = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        boxes = None if self.boxes is None else [list(box) for box in self.boxes]
        image = base64.b64encode(content).decode("ascii")
        return {"id": self.id, "image": image, "boxes": boxes, "group": self.group}


def from_row(row: Mapping[str, Any], place: str, classes: tuple[str, ...]) -> DetectionExample:
    """Return the labelled example that `DetectionExample.to_row` wrote.

    Raises:
        UserError: the values are no example of these classes.
    """
    boxes, group = row.get("boxes"), row.get("group")
    texts = all(isinstance(row.get(key), str) for key in ("id", "image")) and isinstance(group, str | None)
    if not texts or not isinstance(boxes, list):
        raise UserError(
            f"{place}: {shorten(dict(row))} is no example. Each line needs id, image (a file in base64) and boxes (a "
            "list of [left, top, right, bottom, class], in pixels)."
        )
    try:
        content = base64.b64decode(row["image"], validate=True)
    except ValueError as error:
        raise UserError(f"{place}: image is not valid base64 ({error}). Write the file's bytes in base64.") from None
    read = [_box(values, place) for values in cast("list[Any]", boxes)]
    return DetectionExample.read(row["id"], content, classes, read, group)


def told(changed: Iterable[Mapping[str, int]]) -> list[str]:
    """Return a sentence for each rule of boxes that was applied, given the counts of each image.

    >>> told([{"clipped": 2}, {"clipped": 1, "no_area": 1}])
    ['3 boxes reach outside of their image and were clipped', '1 boxes have no area and were dropped']
    """
    counts = sum((Counter(one) for one in changed), Counter[str]())
    return [f"{counts[rule]} boxes {words}" for rule, words in BOX_RULES.items() if counts[rule]]


def _box(values: Any, place: str) -> Box:
    known = cast("list[Any]", values) if isinstance(values, list) else []
    numbers = [value for value in known[:4] if isinstance(value, (int, float)) and not isinstance(value, bool)]
    try:
        if len(known) == 5 and len(numbers) == 4 and isinstance(known[4], str):
            left, top, right, bottom = map(float, numbers)
            return Box(left, top, right, bottom, known[4])
    except OverflowError:  # a whole number can be larger than any float
        pass
    raise UserError(f"{place}: {shorten(values)} is no box. Write [left, top, right, bottom, class], in pixels.")


def _check(box: Box, place: str, classes: Sequence[str]) -> None:
    if not all(math.isfinite(side) for side in box[:4]):
        raise UserError(f"{place}: the box {list(box)} has a side that is no finite number. Correct or remove it.")
    if box.label not in classes:
        raise UserError(
            f"{place}: the class {shorten(box.label)} of a box is not one of {shorten(list(classes))}. Correct it, or "
            "list all classes in task.format.choices."
        )
