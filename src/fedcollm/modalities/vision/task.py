"""Image classification: one row of logits an image."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedcollm.messages import Score
from fedcollm.modalities.base import UNLABELLED, Pool


@dataclass(frozen=True, eq=False)
class ImageExample:
    """An image and its class.

    Attributes:
        id: unique within its data set.
        pixels: [channels, height, width] float32 from 0 to 1.
        target: index of the class, or None if unlabelled.
        group: natural client id, where the data has one.
    """

    id: str
    pixels: Tensor
    target: int | None
    group: str | None = None

    @property
    def label(self) -> str | None:
        """Name of the class."""
        return None if self.target is None else str(self.target)

    @property
    def content(self) -> str:
        """The pixels' bytes, as hexadecimal digits."""
        return self.pixels.numpy().tobytes().hex()

    def without_label(self) -> "ImageExample":
        """The same image, its class forgotten."""
        return replace(self, target=None)


@dataclass(frozen=True)
class ImageBatch:
    """B images, [B, channels, height, width], and their targets, [B] int64."""

    pixels: Tensor
    targets: Tensor


class ImageTask:
    """Classification of images by any transformers image classifier.

    Args:
        name: name of the task, for reports.
        classes: names of the classes, in the order of the logits' columns.
    """

    metric = "accuracy"

    def __init__(self, name: str, classes: Sequence[str]):
        self.name = name
        self.classes = tuple(classes)

    def size(self, example: ImageExample) -> int:
        """All images cost the same."""
        return 1

    def collate(self, examples: Sequence[ImageExample]) -> ImageBatch:
        """Images stacked along a first dimension."""
        targets = [UNLABELLED if example.target is None else example.target for example in examples]
        return ImageBatch(torch.stack([example.pixels for example in examples]), torch.tensor(targets))

    def logits(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """[B, classes]: one row an image."""
        parameter = next(model.parameters())
        return model(pixel_values=batch.pixels.to(parameter)).logits.float()

    def targets(self, batch: ImageBatch) -> Tensor:
        """[B] int64."""
        return batch.targets

    def score(self, model: nn.Module, examples: Sequence[ImageExample]) -> Score:
        """Accuracy of the most likely class."""
        batch = self.collate(examples)
        predicted = self.logits(model, batch).argmax(-1).cpu()
        correct = (predicted == batch.targets).tolist()
        outcomes = {example.id: float(right) for example, right in zip(examples, correct, strict=True)}
        pairs = zip(batch.targets.tolist(), predicted.tolist(), strict=True)
        confusion = Counter((self.classes[t], self.classes[p]) for t, p in pairs)
        return Score({"acc": float(sum(correct))}, len(examples), confusion, outcomes)


def load_digit_images() -> Pool:
    """scikit-learn's 1797 scanned digits, 8 x 8 pixels (UCI Optical Recognition of Handwritten Digits)."""
    from sklearn.datasets import load_digits  # 100 MB of memory when imported

    pixels, targets = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return Pool([ImageExample(f"digit-{i}", images[i], int(target)) for i, target in enumerate(targets)])
