"""Read image files with Pillow, under stated rules: every image becomes RGB of 8 bits a channel, upright.

- An animation gives its first frame.
- The rotation that the EXIF data names is applied.
- Transparent pixels are composited on white.
- Gray, bilevel, palette, CMYK and other colour models are converted to RGB, without colour profiles.
- 16-bit gray values are divided by 257, so that black and white stay black and white.
- An image with a side of more than `MOST_RATIO` times the other is refused: scaled to the shortest side that a model
  reads, it could fill the memory.
- An image with more than `MOST_PIXELS` pixels is refused before it is decoded, and so is a broken one.
"""

import hashlib
import io
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from PIL import Image, ImageOps

from fedcollm.errors import UserError

#: Largest number of pixels of an image: a small file can claim any number (a decompression bomb).
MOST_PIXELS = 64_000_000

#: Largest ratio of the sides of an image.
MOST_RATIO = 100

#: Formats that are read. Pillow knows more, some of which start other programs (EPS).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

#: Suffixes of files of these formats, in lower case.
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")

#: Name of a rule to how the notes on the data say that it was applied to some images.
RULES: Mapping[str, str] = {
    "first_frame": "are animations, of which the first frame is used",
    "rotated": "were turned as their EXIF data says",
    "on_white": "have transparent pixels, which were put on white",
    "converted": "were converted to RGB from gray, palette, CMYK or another colour model",
    "from_16_bits": "have 16 bits a pixel, of which the upper 8 are used",
}

_EXIF_ORIENTATION = 0x0112
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")


class Decoded(NamedTuple):
    """An image in RGB, and the names of the rules that changed it (keys of `RULES`)."""

    image: Image.Image
    rules: tuple[str, ...]


def decode(source: Path | bytes, name: str) -> Decoded:
    """Return an image as the rules of this module say.

    Args:
        source: a file, or its content.
        name: what to call it in messages, such as its path.

    Raises:
        UserError: it is missing, empty, truncated, too large, or no image that is read here.
    """
    opened = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what the rules handle, such as odd EXIF data
            with Image.open(opened, formats=FORMATS) as image:
                _check_size(image, name)
                return _upright_rgb(image)
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(_too_large(name, f"more than {MOST_PIXELS:,}")) from None
    except Exception as error:  # a broken file can make Pillow raise almost anything
        reason = "the file is empty" if _is_empty(source) else (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name}: can't be read as an image ({reason}). Replace it by a complete image file "
            f"({', '.join(FORMATS)}), or remove it."
        ) from None


def fingerprint(image: Image.Image) -> str:
    """Return the SHA-256 of an RGB image's size and pixels, in hexadecimal."""
    return hashlib.sha256(f"{image.width}x{image.height}".encode() + image.tobytes()).hexdigest()


def noted(rules: Mapping[str, Iterable[str]]) -> list[str]:
    """Return a sentence for each rule that was applied, given rule to the images that it was applied to.

    >>> noted({"rotated": ["a.jpg", "b.jpg"]})
    ['2 images were turned as their EXIF data says']
    """
    counts = {name: len(list(rules.get(name, ()))) for name in RULES}
    return [f"{count} images {RULES[name]}" for name, count in counts.items() if count]


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise UserError(_too_large(name, f"{image.width} x {image.height}"))
    if max(image.size) > MOST_RATIO * min(image.size):
        raise UserError(
            f"{name}: the image has {image.width} x {image.height} pixels, and a side may be at most {MOST_RATIO} "
            "times the other. Crop it, or remove it."
        )


def _too_large(name: str, size: str) -> str:
    return f"{name}: the image has {size} pixels, and at most {MOST_PIXELS:,} are read. Scale it down, or remove it."


def _is_empty(source: Path | bytes) -> bool:
    return not source if isinstance(source, bytes) else source.is_file() and not source.stat().st_size


def _upright_rgb(image: Image.Image) -> Decoded:
    """Return the first frame of an opened image, and the rules that were applied to it."""
    rules: list[str] = []
    if getattr(image, "is_animated", False) and image.format != "MPO":  # an MPO is a photograph with previews
        rules.append("first_frame")
    image.seek(0)
    image.load()
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        rules.append("rotated")
    upright = ImageOps.exif_transpose(image)
    if upright.mode in _SIXTEEN_BITS:
        return Decoded(_eight_bits(upright), (*rules, "from_16_bits"))
    if upright.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; 8 or 16 bits a pixel are read")
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        return Decoded(Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB"), (*rules, "on_white"))
    if upright.mode != "RGB":
        rules.append("converted")
    return Decoded(upright.convert("RGB"), tuple(rules))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return a gray image of 16 bits a pixel as RGB of 8 bits a channel."""
    values = np.asarray(cast(Any, image)).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its gray values are not between 0 and 65535; 8 or 16 bits a pixel are read")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
