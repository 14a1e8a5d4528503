"""Scanned digits of 8 x 8 gray pixels from scikit-learn (UCI Optical Recognition of Handwritten Digits)."""

from typing import Any

import torch

from fedcollm.data.pool import Pool
from fedcollm.modalities.vision.task import ImageExample

CLASSES: tuple[str, ...] = tuple("0123456789")


def load_digit_images() -> Pool:
    """Return the 1,797 digits that scikit-learn ships."""
    from sklearn import datasets  # pyright: ignore[reportMissingTypeStubs] # takes 100 MB of memory

    load_digits: Any = datasets.load_digits
    pixels, targets = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return Pool([ImageExample(f"digit-{i}", images[i], int(target)) for i, target in enumerate(targets)])
