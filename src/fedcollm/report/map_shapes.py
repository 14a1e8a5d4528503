"""The shapes of a drawing in SVG: the template turns each into an element, and escapes every text."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

#: Width of a character as a share of the font's size: most letters; letters of double width, such as Chinese ones.
_NARROW, _WIDE = 0.53, 1.05


@dataclass(frozen=True)
class Text:
    """One line of text; `kind` is its class, `whole` is what hovering over it shows."""

    x: float
    y: float
    content: str
    kind: str = ""
    anchor: str = "middle"
    whole: str = ""


@dataclass(frozen=True)
class Box:
    """A rectangle with rounded corners; `kind` is its class."""

    x: float
    y: float
    width: float
    height: float
    kind: str


@dataclass(frozen=True)
class Line:
    """A line through points; `arrows` says whether it has a head at its `start`, its `end` or `both`."""

    points: Sequence[tuple[float, float]]
    kind: str = ""
    arrows: str = ""

    @property
    def path(self) -> str:
        """Return the line as the value of the attribute `d`."""
        return "M" + "L".join(f"{x:g} {y:g}" for x, y in self.points)


@dataclass(frozen=True)
class Dot:
    """A circle; `kind` is its class, `whole` is what hovering over it shows."""

    x: float
    y: float
    radius: float
    kind: str
    whole: str = ""


@dataclass
class Drawing:
    """Shapes on a canvas, in the order in which they are drawn within each kind.

    Attributes:
        name: name of the drawing, which is part of the ids in it.
        width: width of the canvas.
        height: height of the canvas.
        boxes: rectangles.
        lines: lines.
        dots: circles.
        texts: lines of text.
    """

    name: str
    width: float
    height: float = 0
    boxes: list[Box] = field(default_factory=list[Box])
    lines: list[Line] = field(default_factory=list[Line])
    dots: list[Dot] = field(default_factory=list[Dot])
    texts: list[Text] = field(default_factory=list[Text])

    def write(self, x: float, y: float, content: str, kind: str, room: tuple[float, float], anchor: str = "") -> None:
        """Add a text, cut to its room: the width that there is, and the size of the font."""
        cut = fitted(content, *room)
        self.texts.append(Text(x, y, cut, kind, anchor or "middle", content if cut != content else ""))


def text_width(text: str, size: float) -> float:
    """Return about how wide a text is in a font of this size.

    >>> text_width("ab", 10), text_width("漢", 10)
    (10.6, 10.5)
    """
    wide = sum(unicodedata.east_asian_width(sign) in "WF" for sign in text)
    return round(size * (_WIDE * wide + _NARROW * (len(text) - wide)), 1)


def fitted(text: str, width: float, size: float) -> str:
    """Return a text, cut at its end if it is wider than there is room.

    >>> fitted("St. Mary's Hospital", 60, 10)
    "St. Mary's…"
    """
    if text_width(text, size) <= width:
        return text
    end = len(text)
    while end and text_width(f"{text[:end]}…", size) > width:
        end -= 1
    return f"{text[:end].rstrip()}…"
