"""Scenes of 64 x 64 pixels with one to three shapes each, drawn here: detection that needs no download.

The public set D_a has a plain style. Each client has a style of its own: what is behind the shapes, their colors and
the noise. All scenes come from a fixed seed, so that every run has the same ones.
"""

import io
import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fedcollm.data.pool import Pool
from fedcollm.modalities.vision.boxes import Box, DetectionExample
from fedcollm.seeding import derive_seed

#: The shapes, which are the classes.
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross", "ring")

#: Height and width of a scene, and the smallest and largest side of a shape, in pixels.
SIDE, SMALLEST, LARGEST = 64, 18, 32

#: Number of scenes: of the public set, and of each client in training and for the test.
PUBLIC, TRAIN, TEST = 2_000, 240, 60

_SEED, _MOST_SHAPES, _TRIES = 1, 3, 20

Color = tuple[int, int, int]


class Style(NamedTuple):
    """How the scenes of a client look.

    Attributes:
        background: the range of each channel of the background.
        shape: the range of each channel of a shape.
        noise: standard deviation of the noise of every pixel.
        lines: distance of the lines of a grid behind the shapes, in pixels; 0 for none.
    """

    background: tuple[Color, Color]
    shape: tuple[Color, Color]
    noise: float
    lines: int = 0


#: The styles of the public set, in turns: dark shapes on a light background, and the other way round. Its group is
#: `plain`.
PLAIN: tuple[Style, ...] = (
    Style(((170, 170, 170), (255, 255, 255)), ((0, 0, 0), (110, 110, 110)), 6.0),
    Style(((0, 0, 0), (90, 90, 90)), ((150, 150, 150), (255, 255, 255)), 6.0),
)

#: Client to its style.
STYLES: Mapping[str, Style] = {
    "night": Style(((0, 0, 20), (30, 30, 80)), ((160, 140, 60), (255, 230, 140)), 12.0),
    "blueprint": Style(((20, 50, 120), (50, 90, 180)), ((190, 200, 210), (255, 255, 255)), 4.0, lines=8),
    "photocopy": Style(((150, 150, 150), (190, 190, 190)), ((30, 30, 30), (80, 80, 80)), 20.0),
    "meadow": Style(((60, 130, 30), (120, 200, 80)), ((140, 20, 90), (255, 90, 200)), 12.0),
}


def load_shapes() -> Pool:
    """Return the scenes: those of the clients' styles in `train` and `test`, those of the plain style in `public`."""
    public = [_scene("plain", PLAIN[number % len(PLAIN)], number) for number in range(PUBLIC)]
    scenes = {group: [_scene(group, style, n) for n in range(TRAIN + TEST)] for group, style in STYLES.items()}
    return Pool(
        train=[scene for group in scenes.values() for scene in group[:TRAIN]],
        test=[scene for group in scenes.values() for scene in group[TRAIN:]],
        public=public,
    )


def _scene(group: str, style: Style, number: int) -> DetectionExample:
    """Return the scene of this number in a style; its shapes overlap at most a little."""
    draw = random.Random(derive_seed(_SEED, "shapes", group, number))
    image = _background(style, draw)
    canvas, boxes = ImageDraw.Draw(image), list[Box]()
    for _ in range(draw.randint(1, _MOST_SHAPES)):
        if (box := _free_place(boxes, draw)) is not None:
            boxes.append(box)
            _DRAW[box.label](canvas, box, _color(style.shape, draw), _color(style.background, draw))
    file = io.BytesIO()
    _noisy(image, style.noise, derive_seed(_SEED, "shapes", group, number, "noise")).save(file, "PNG")
    return DetectionExample.read(f"{group}-{number}", file.getvalue(), SHAPES, boxes, group)


def _background(style: Style, draw: random.Random) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), _color(style.background, draw))
    canvas = ImageDraw.Draw(image)
    for place in range(style.lines // 2, SIDE, style.lines) if style.lines else ():
        for line in ((place, 0, place, SIDE), (0, place, SIDE, place)):
            canvas.line(line, _color((style.background[1], style.shape[0]), draw))
    return image


def _free_place(taken: list[Box], draw: random.Random) -> Box | None:
    """Return a box of a random shape, size and place whose middle part is free; None if none is found."""
    for _ in range(_TRIES):
        side, label = draw.randint(SMALLEST, LARGEST), draw.choice(SHAPES)
        left, top = draw.randint(0, SIDE - side), draw.randint(0, SIDE - side)
        box = Box(left, top, left + side, top + side, label)
        if all(_apart(box, other) for other in taken):
            return box
    return None


def _apart(one: Box, other: Box) -> bool:
    """Return whether two boxes overlap by at most two pixels in one direction."""
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    return min(width, height) <= 2


def _color(range_of: tuple[Color, Color], draw: random.Random) -> Color:
    low, high = range_of
    return (draw.randint(low[0], high[0]), draw.randint(low[1], high[1]), draw.randint(low[2], high[2]))


def _noisy(image: Image.Image, deviation: float, seed: int) -> Image.Image:
    values: NDArray[np.float64] = np.asarray(image, dtype=np.float64)
    noise = np.random.default_rng(seed).normal(0.0, deviation, values.shape)
    return Image.fromarray((values + noise).round().clip(0, 255).astype(np.uint8))


def _circle(canvas: ImageDraw.ImageDraw, box: Box, ink: Color, paper: Color) -> None:
    canvas.ellipse((box.left, box.top, box.right - 1, box.bottom - 1), fill=ink)


def _square(canvas: ImageDraw.ImageDraw, box: Box, ink: Color, paper: Color) -> None:
    canvas.rectangle((box.left, box.top, box.right - 1, box.bottom - 1), fill=ink)


def _triangle(canvas: ImageDraw.ImageDraw, box: Box, ink: Color, paper: Color) -> None:
    middle = (box.left + box.right - 1) / 2
    canvas.polygon([(middle, box.top), (box.right - 1, box.bottom - 1), (box.left, box.bottom - 1)], fill=ink)


def _cross(canvas: ImageDraw.ImageDraw, box: Box, ink: Color, paper: Color) -> None:
    third = (box.right - box.left) / 3
    canvas.rectangle((box.left + third, box.top, box.right - 1 - third, box.bottom - 1), fill=ink)
    canvas.rectangle((box.left, box.top + third, box.right - 1, box.bottom - 1 - third), fill=ink)


def _ring(canvas: ImageDraw.ImageDraw, box: Box, ink: Color, paper: Color) -> None:
    _circle(canvas, box, ink, paper)
    quarter = (box.right - box.left) / 4
    _circle(
        canvas, Box(box.left + quarter, box.top + quarter, box.right - quarter, box.bottom - quarter, ""), paper, ink
    )


_DRAW: Mapping[str, Callable[[ImageDraw.ImageDraw, Box, Color, Color], None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
}
