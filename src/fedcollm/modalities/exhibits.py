"""Exhibits: test examples and what the models say of them, in a form that a report can draw for any modality.

An exhibit may have a picture (a photograph, a spectrogram), regions of it (what a detector finds), or words that are
marked as right or wrong (a transcript). All texts and pictures are bounded, so that one example can't fill a report.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

#: Largest size of the pictures of a run together, in bytes of PNG; base64 makes 4/3 of it.
MOST_BYTES = 1_500_000

_LONGEST_NAME, _LONGEST_TEXT, _MOST_WORDS, _MOST_REGIONS = 80, 600, 200, 100
_SIGNATURE = b"\x89PNG\r\n\x1a\n"

Share = Annotated[float, Field(ge=0, le=1)]
#: Status of a word of a transcript: heard as said; not heard; heard but not said; heard as another word; that word.
Status = Literal["same", "deleted", "inserted", "replaced", "replacement"]


@dataclass(frozen=True)
class Region:
    """A rectangle in a picture.

    Attributes:
        left: its left edge, as a share of the picture's width.
        top: its upper edge, as a share of the picture's height.
        right: its right edge.
        bottom: its lower edge.
        label: name of the class.
        confidence: how sure a model is; None if the region is true.
    """

    left: Share
    top: Share
    right: Share
    bottom: Share
    label: str
    confidence: Share | None = None


@dataclass(frozen=True)
class Answer:
    """What one model says of an example.

    Attributes:
        text: the answer; empty if the modality can't put it in words.
        right: whether it is right; None if that is not known.
        words: a transcript, word by word, if the answer is one.
        regions: the regions that the model finds.
    """

    text: str = ""
    right: bool | None = None
    words: tuple[tuple[str, Status], ...] = ()
    regions: tuple[Region, ...] = ()


@dataclass(frozen=True)
class Exhibit:
    """An example, and what the models say of it.

    Attributes:
        id: id of the example.
        text: the input in words, or what the picture is; may be empty.
        truth: the right answer; may be empty.
        picture: the input as PNG; empty if it can't be seen.
        regions: the true regions of the picture.
        answers: role to the model's answer.
    """

    id: str
    text: str = ""
    truth: str = ""
    picture: bytes = field(default=b"", repr=False)
    regions: tuple[Region, ...] = ()
    answers: Mapping[str, Answer] = field(default_factory=dict[str, Answer])

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height of the picture, as its header says."""
        return int.from_bytes(self.picture[16:20], "big"), int.from_bytes(self.picture[20:24], "big")

    @property
    def encoded(self) -> str:
        """Return the picture in base64."""
        return base64.b64encode(self.picture).decode("ascii")


def bounded(exhibits: Sequence[Exhibit], most_bytes: int = MOST_BYTES) -> list[Exhibit]:
    """Return exhibits with texts cut to their bounds, and without the pictures that exceed `most_bytes` together."""
    kept: list[Exhibit] = []
    for exhibit in exhibits:
        room = most_bytes - sum(len(one.picture) for one in kept)
        answers = {role: _bounded_answer(answer) for role, answer in exhibit.answers.items()}
        kept.append(
            replace(
                exhibit,
                id=shortened(exhibit.id, _LONGEST_NAME),
                text=shortened(exhibit.text, _LONGEST_TEXT),
                truth=shortened(exhibit.truth, _LONGEST_TEXT),
                picture=exhibit.picture if len(exhibit.picture) <= room else b"",
                regions=_bounded_regions(exhibit.regions),
                answers=answers,
            )
        )
    return kept


def _bounded_answer(answer: Answer) -> Answer:
    words = tuple((shortened(word, _LONGEST_NAME), status) for word, status in answer.words[:_MOST_WORDS])
    if len(answer.words) > _MOST_WORDS:
        words = (*words, ("…", "same"))
    text = shortened(answer.text, _LONGEST_TEXT)
    return replace(answer, text=text, words=words, regions=_bounded_regions(answer.regions))


def _bounded_regions(regions: Sequence[Region]) -> tuple[Region, ...]:
    """Return the first regions, with edges inside of the picture."""
    return tuple(
        replace(one, **{edge: min(max(getattr(one, edge), 0.0), 1.0) for edge in ("left", "top", "right", "bottom")})
        for one in (replace(one, label=shortened(one.label, _LONGEST_NAME)) for one in regions[:_MOST_REGIONS])
    )


def shortened(text: str, most: int) -> str:
    """Return a text of at most `most` characters, without its middle if it is longer.

    >>> shortened("abcdefghij", 7)
    'abcd…ij'
    """
    if len(text) <= most:
        return text
    end = (most - 1) // 3
    return f"{text[: most - 1 - end]}…{text[len(text) - end :]}"


def to_json(exhibits: Sequence[Exhibit]) -> list[dict[str, Any]]:
    """Return exhibits as JSON values, with pictures in base64."""
    return [{**asdict(exhibit), "picture": exhibit.encoded} for exhibit in exhibits]


_EXHIBITS = TypeAdapter(list[Exhibit])


def from_json(values: Any) -> list[Exhibit]:
    """Return the exhibits that `to_json` wrote.

    Raises:
        ValueError: a value is not an exhibit, or a picture is no PNG.
    """
    exhibits = _EXHIBITS.validate_json(json.dumps(values), strict=True) if values else []
    return [replace(exhibit, picture=_decoded(exhibit.picture)) for exhibit in exhibits]


def _decoded(picture: bytes) -> bytes:
    try:
        png = base64.b64decode(picture, validate=True)
    except binascii.Error as error:
        raise ValueError(f"a picture is not in base64 ({error})") from None
    if png and (not png.startswith(_SIGNATURE) or len(png) < 24):
        raise ValueError("a picture is no PNG")
    return png
