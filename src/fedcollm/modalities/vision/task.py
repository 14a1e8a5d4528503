"""Image classification: one row of logits per image."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.messages import Score
from fedcollm.modalities.base import UNLABELLED, Modality
from fedcollm.modalities.vision.models import ImageModels


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
        """Return the same image with its class forgotten."""
        return replace(self, target=None)


@dataclass(frozen=True)
class ImageBatch:
    """B images, [B, channels, height, width], and their targets, [B] int64."""

    pixels: Tensor
    targets: Tensor


class ImageTask(ImageModels, Modality):
    """Classification of images by any image classifier of transformers.

    Args:
        name: name of the task, for reports.
        classes: names of the classes, in the order of the logits' columns.
    """

    def __init__(self, name: str, classes: Sequence[str]):
        self.name = name
        self.classes = tuple(classes)
        self.options = {"classes": list(self.classes)}

    def load_model(self, section: ModelConfig, role: str, device: torch.device, seed: int) -> nn.Module:
        """Return an image classifier with a column for each class.

        Raises:
            UserError: the source can't be loaded, or has another number of classes.
        """
        network = super().load_model(section, role, device, seed)
        columns = cast(Any, network).config.num_labels
        if columns != len(self.classes):
            raise UserError(
                f"{role}.source {section.source!r} tells {columns} classes apart, and {self.name} has "
                f"{len(self.classes)}. Choose a model with that many classes."
            )
        return network

    def collate(self, examples: Sequence[ImageExample]) -> ImageBatch:
        """Return images stacked along a first dimension."""
        targets = [UNLABELLED if example.target is None else example.target for example in examples]
        return ImageBatch(torch.stack([example.pixels for example in examples]), torch.tensor(targets))

    def logits(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """Return [B, classes]: one row per image."""
        parameter = next(model.parameters())
        return model(pixel_values=batch.pixels.to(parameter)).logits.float()

    def targets(self, batch: ImageBatch) -> Tensor:
        """Return [B] int64."""
        return batch.targets

    def score(self, model: nn.Module, examples: Sequence[ImageExample]) -> Score:
        """Return the accuracy of the most likely class."""
        batch = self.collate(examples)
        predicted = self.logits(model, batch).argmax(-1).cpu()
        correct = (predicted == batch.targets).tolist()
        outcomes = {example.id: float(right) for example, right in zip(examples, correct, strict=True)}
        pairs = zip(batch.targets.tolist(), predicted.tolist(), strict=True)
        confusion = Counter((self.classes[t], self.classes[p]) for t, p in pairs)
        return Score({"acc": float(sum(correct))}, len(examples), confusion, outcomes)
