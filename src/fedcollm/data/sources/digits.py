"""Scanned digits, 8 x 8 grey pixels each, from scikit-learn (UCI Optical Recognition of Handwritten Digits)."""

import torch

from fedcollm.modalities.base import Pool
from fedcollm.modalities.vision.task import ImageExample

CLASSES = tuple("0123456789")


def load_digit_images() -> Pool:
    """Return the 1,797 digits that scikit-learn ships."""
    from sklearn.datasets import load_digits  # 100 MB of memory when imported

    pixels, targets = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return Pool([ImageExample(f"digit-{i}", images[i], int(target)) for i, target in enumerate(targets)])
