"""Augmentations of images: a function each, listed in `IMAGES`. Boxes of objects follow.

They are applied to the pixels that a model reads, after scaling and normalizing. The pixels in memory that a task keeps
of each image stay as they are.
"""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fedcollm.data.augmentation.draws import Draws
from fedcollm.modalities.vision.detection import DetectionBatch, DetectionTask
from fedcollm.modalities.vision.set_prediction import Objects, to_corners
from fedcollm.modalities.vision.task import ImageBatch, ImageExample, ImageTask

#: Largest change of the side of `crop`'s window, and of its place, in units of the image.
_ZOOM, _MOVE = 0.2, 0.1

#: Largest change of contrast, of brightness and of the brightness of one channel, in standard deviations of the image.
_CONTRAST, _BRIGHTNESS, _TINT = 0.2, 0.2, 0.1

#: Side of `cutout`'s square, in units of the image, and the largest one.
_HOLE, _LARGEST_HOLE = 0.25, 0.5

#: Smallest part of an object that must be within the window, for its box to stay.
_VISIBLE = 0.3


@dataclass(frozen=True)
class Picture:
    """An image, and its objects if these are known.

    Attributes:
        pixels: [channels, height, width].
        objects: the objects; None for classification, and for an unlabelled image.
    """

    pixels: Tensor
    objects: Objects | None = None


Change = Callable[[Picture, float, random.Random], Picture]


def crop(picture: Picture, strength: float, draw: random.Random) -> Picture:
    """Return a window of an image, scaled to its size. Beyond the image, its border is repeated.

    A box is cut at the window, and left out if less than three tenths of it are visible.
    """
    side = 1 + draw.uniform(-_ZOOM, _ZOOM) * min(strength, 2.0)
    x, y = (0.5 + draw.uniform(-_MOVE, _MOVE) * min(strength, 2.0) for _ in range(2))
    place = torch.tensor([[[side, 0.0, 2 * x - 1], [0.0, side, 2 * y - 1]]])
    grid = functional.affine_grid(place, [1, *picture.pixels.shape], align_corners=False)
    made = functional.grid_sample(picture.pixels[None], grid, padding_mode="border", align_corners=False)[0]
    return Picture(made, _cropped(picture.objects, x - side / 2, y - side / 2, side))


def flip(picture: Picture, strength: float, draw: random.Random) -> Picture:
    """Return the mirror image, in which left is right."""
    return Picture(picture.pixels.flip(-1), _mirrored(picture.objects, 0))


def vertical_flip(picture: Picture, strength: float, draw: random.Random) -> Picture:
    """Return the mirror image, in which top is bottom."""
    return Picture(picture.pixels.flip(-2), _mirrored(picture.objects, 1))


def color(picture: Picture, strength: float, draw: random.Random) -> Picture:
    """Return an image of another contrast and brightness, and of another tint if it has several channels."""
    pixels = picture.pixels
    mean, spread = pixels.mean(), pixels.std() if pixels.numel() > 1 else 0.0
    contrast, brightness = (1 + draw.uniform(-_CONTRAST, _CONTRAST) * strength, draw.uniform(-_BRIGHTNESS, _BRIGHTNESS))
    tints = [draw.uniform(-_TINT, _TINT) * (len(pixels) > 1) for _ in range(len(pixels))]
    moved = torch.tensor([(brightness + tint) * strength for tint in tints])[:, None, None]
    return replace(picture, pixels=mean + (pixels - mean) * max(contrast, 0.0) + moved * spread)


def cutout(picture: Picture, strength: float, draw: random.Random) -> Picture:
    """Return an image in which a square has the mean color (DeVries and Taylor, arXiv 1708.04552)."""
    share = min(_HOLE * strength, _LARGEST_HOLE)
    height, width = picture.pixels.shape[1:]
    tall, wide = max(round(share * height), 1), max(round(share * width), 1)
    top, left = draw.randint(0, height - tall), draw.randint(0, width - wide)
    pixels = picture.pixels.clone()
    pixels[:, top : top + tall, left : left + wide] = picture.pixels.mean((1, 2))[:, None, None]
    return replace(picture, pixels=pixels)


#: Name to function, in the order in which they are applied.
IMAGES: Mapping[str, Change] = {
    "crop": crop,
    "flip": flip,
    "vertical_flip": vertical_flip,
    "color": color,
    "cutout": cutout,
}


def _mirrored(objects: Objects | None, axis: int) -> Objects | None:
    if objects is None:
        return None
    boxes = objects.boxes.clone()
    boxes[:, axis] = 1 - boxes[:, axis]
    return Objects(objects.classes, boxes)


def _cropped(objects: Objects | None, left: float, top: float, side: float) -> Objects | None:
    """Return the objects in units of a square window, without those that are hardly in it."""
    if objects is None:
        return None
    corners = (to_corners(objects.boxes) - torch.tensor([left, top, left, top])) / side
    inside = corners.clamp(0, 1)
    size, seen = corners[:, 2:] - corners[:, :2], inside[:, 2:] - inside[:, :2]
    kept = seen.prod(-1) >= _VISIBLE * size.prod(-1).clamp(min=1e-12)
    boxes = torch.cat([(inside[:, :2] + inside[:, 2:]) / 2, seen], dim=-1)
    return Objects(objects.classes[kept], boxes[kept])


def _content(example: Any) -> str:
    """Return a digest of an example's pixels, which is the same wherever the example is read from."""
    if isinstance(example, ImageExample):
        return hashlib.sha256(example.pixels.contiguous().numpy().tobytes()).hexdigest()
    return example.content


def changed(picture: Picture, example: str, draws: Draws) -> Picture:
    """Return an image as it is in one epoch, given what tells its example apart."""
    for name, draw in draws.of(example, IMAGES):
        picture = IMAGES[name](picture, draws.strength, draw)
    return picture


class ImageBatches:
    """Makes batches of images as they are in one epoch.

    Args:
        task: the modality.
        draws: the augmentations of the epoch.
    """

    def __init__(self, task: ImageTask | DetectionTask, draws: Draws):
        self._task = task
        self._draws = draws

    def size(self, example: Any) -> int:
        """Return the size of an example, which no augmentation changes."""
        return self._task.size(example)

    def collate(self, examples: Sequence[Any]) -> ImageBatch | DetectionBatch:
        """Return a batch of changed images."""
        batch = self._task.collate(examples)
        known = batch.objects if isinstance(batch, DetectionBatch) else [None] * len(examples)
        made = [
            changed(Picture(pixels, objects), _content(example), self._draws)
            for example, pixels, objects in zip(examples, batch.pixels, known, strict=True)
        ]
        pixels = torch.stack([one.pixels for one in made])
        if isinstance(batch, DetectionBatch):
            return replace(batch, pixels=pixels, objects=tuple(one.objects for one in made))
        return replace(batch, pixels=pixels)
