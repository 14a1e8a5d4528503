"""Pictures of inputs for reports: PNG files of bounded size."""

import io
from typing import Any

import numpy as np
from PIL import Image

#: Longest side of a picture.
LARGEST_SIDE = 240


def picture(image: Image.Image) -> bytes:
    """Return an image as PNG, scaled so that no side is longer than `LARGEST_SIDE`.

    An image of which two or more fit side by side is enlarged by a whole factor, so that its pixels stay squares.
    """
    longest = max(image.size)
    if longest > LARGEST_SIDE:
        image = image.convert("RGB")
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    elif (factor := LARGEST_SIDE // longest) > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    written = io.BytesIO()
    image.save(written, format="PNG", optimize=True)
    return written.getvalue()


def image_of(values: Any) -> Image.Image:
    """Return an image of values from 0 to 1, [1, height, width] gray or [3, height, width] RGB; others are clipped.

    Of any other number of channels, the first one is shown.
    """
    levels = (np.nan_to_num(np.asarray(values, dtype=np.float64)).clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(levels.transpose(1, 2, 0) if len(levels) == 3 else levels[0])
