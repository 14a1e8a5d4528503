"""Find images that are unreadable, of an odd size, dark, bright, blurry, without information, or there twice.

The measures are those of cleanvision's documentation (which does not install beside every torch), on a gray image whose
longer side has at most `_SIDE` pixels. What "odd" and "blurry" mean depends on the data: both are judged by the median.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedcollm.data.audit.duplicates import as_findings
from fedcollm.data.audit.extra import audit_library
from fedcollm.data.audit.findings import Finding, Fix, Subject
from fedcollm.errors import UserError
from fedcollm.modalities.vision.images import fingerprint
from fedcollm.progress import track

#: Longer side of the image that is measured, and side of the thumbnail that near duplicates have in common.
_SIDE, _THUMBNAIL = 256, 16

#: An image is dark if its brightest pixels (99th percentile) are below, and bright if its darkest (5th) are above.
_DARK, _BRIGHT = 0.32, 0.95

#: Bits of entropy of the gray values below which an image has no information.
_FEWEST_BITS = 1.0

#: Fewest images by whose median an image is judged. It is blurry with less than this share of the median sharpness,
#: and of an odd size with a side ratio or an area of more than this multiple of the median, or less than its inverse.
_JUDGED, _BLURRY, _ODD_SHAPE, _ODD_AREA = 10, 0.1, 3.0, 10.0

#: Bits of 64 by which the perceptual hashes of near duplicates differ at most, and the mean difference of the gray
#: values of their thumbnails, from 0 to 1.
_BITS, _DIFFERENCE = 6, 0.03


@dataclass(frozen=True)
class _Look:
    """What is measured of an image.

    Attributes:
        size: width and height in pixels.
        low: 5th percentile of the gray values, from 0 to 1.
        high: 99th percentile.
        bits: entropy of the gray values in bits, from 0 to 8.
        sharpness: variance of the Laplacian, relative to that of the gray values.
        digest: fingerprint of the pixels.
        hash: perceptual hash in 64 bits.
        thumbnail: [16, 16] gray values from 0 to 1.
    """

    size: tuple[int, int]
    low: float
    high: float
    bits: float
    sharpness: float
    digest: str
    hash: int
    thumbnail: NDArray[np.floating[Any]]


def images(subject: Subject) -> Iterator[Finding]:
    """Yield what is odd about the images."""
    looks: dict[int, _Look] = {}
    for i, record in enumerate(track(subject.records, "looking at images", total=len(subject.records))):
        if record.fault:
            continue  # it is reported already
        try:
            looks[i] = _look(record.image())
        except UserError as error:
            yield Finding("unreadable", i, str(error).removeprefix(f"{record.place}: "), fix=Fix("drop"))
    for i, look in looks.items():
        yield from _single(i, look)
    if len(looks) >= _JUDGED:
        yield from _compared(looks)
    yield from as_findings(subject.records, _alike(looks))


def _look(image: Image.Image) -> _Look:
    hashing: Any = audit_library("imagehash")
    gray = image.convert("L")
    gray.thumbnail((_SIDE, _SIDE))
    values = np.asarray(gray, dtype=np.float32) / 255
    counts = np.bincount(np.asarray(gray, dtype=np.uint8).ravel(), minlength=256) / values.size
    filled = counts[counts > 0]
    small = image.convert("L").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    bits: NDArray[np.bool_] = hashing.phash(image).hash
    return _Look(
        size=image.size,
        low=float(np.percentile(values, 5)),
        high=float(np.percentile(values, 99)),
        bits=float((filled * -np.log2(filled)).sum()) + 0.0,
        sharpness=_sharpness(values),
        digest=fingerprint(image),
        hash=int("".join("01"[int(bit)] for bit in bits.ravel()), 2),
        thumbnail=np.asarray(small, dtype=np.float32) / 255,
    )


def _sharpness(values: NDArray[np.floating[Any]]) -> float:
    """Return the variance of the Laplacian of gray values [H, W], relative to their own variance."""
    if min(values.shape) < 3:
        return 1.0
    inner = values[1:-1, 1:-1]
    laplacian = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:] - 4 * inner
    return float(laplacian.var() / (values.var() + 1e-6))


def _single(i: int, look: _Look) -> Iterator[Finding]:
    if look.high < _DARK:
        yield Finding(
            "dark", i, f"99 % of the pixels have at most {100 * look.high:.0f} % brightness", 1 - look.high / _DARK
        )
    elif look.low > _BRIGHT:
        score = (look.low - _BRIGHT) / (1 - _BRIGHT)
        yield Finding("bright", i, f"95 % of the pixels have at least {100 * look.low:.0f} % brightness", score)
    if look.bits < _FEWEST_BITS:
        detail = f"{look.bits:.1f} bits of information per pixel"
        yield Finding("plain", i, detail, 1 - look.bits / _FEWEST_BITS)


def _compared(looks: dict[int, _Look]) -> Iterator[Finding]:
    """Yield images that are blurry, or of an odd size, beside the others."""
    ratios = {i: look.size[0] / look.size[1] for i, look in looks.items()}
    areas = {i: look.size[0] * look.size[1] for i, look in looks.items()}
    sharp = float(np.median([look.sharpness for look in looks.values()]))
    ratio, area = float(np.median([*ratios.values()])), float(np.median([*areas.values()]))
    for i, look in looks.items():
        if look.sharpness < _BLURRY * sharp and look.bits >= _FEWEST_BITS:
            share = look.sharpness / sharp
            yield Finding("blurry", i, f"{100 * share:.0f} % of the median sharpness", 1 - share / _BLURRY)
        odd = max(ratios[i] / ratio, ratio / ratios[i]) > _ODD_SHAPE
        if odd or max(areas[i] / area, area / areas[i]) > _ODD_AREA:
            yield Finding("size", i, f"{look.size[0]} x {look.size[1]} pixels")


def _alike(looks: dict[int, _Look]) -> Iterator[tuple[int, int, float]]:
    """Yield each image that is like an earlier one; images without information are only compared for equality."""
    first: dict[str, int] = {}
    kept: list[int] = []
    hashes = np.zeros(len(looks), dtype=np.uint64)
    for i, look in looks.items():
        if look.digest in first:
            yield i, first[look.digest], 1.0
            continue
        first[look.digest] = i
        if look.bits < _FEWEST_BITS:
            continue
        distance = np.bitwise_count(hashes[: len(kept)] ^ np.uint64(look.hash))
        near = _nearest(looks, look, [kept[at] for at in np.flatnonzero(distance <= _BITS)])
        if near is not None:
            yield i, *near
        else:
            hashes[len(kept)] = np.uint64(look.hash)
            kept.append(i)


def _nearest(looks: dict[int, _Look], look: _Look, others: Sequence[int]) -> tuple[int, float] | None:
    """Return the first of other images whose thumbnail is the same, with how alike they are."""
    for other in others:
        difference = float(np.abs(looks[other].thumbnail - look.thumbnail).mean())
        if difference <= _DIFFERENCE:
            return other, min(1 - difference, 0.999)
    return None
