"""Image classification, where each image has one row of logits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedcollm.config import ModelConfig, StatisticsConfig
from fedcollm.modalities.base import UNLABELLED
from fedcollm.modalities.classification import ClassificationTask
from fedcollm.modalities.evidence import Evidence
from fedcollm.modalities.exhibits import Exhibit
from fedcollm.modalities.pictures import image_of, picture
from fedcollm.modalities.vision.evidence import image_evidence
from fedcollm.modalities.vision.models import ImageModels


@dataclass(frozen=True, eq=False)
class ImageExample:
    """An image and its class.

    Attributes:
        id: id of the example, unique within its data set.
        pixels: [channels, height, width] float32 from 0 to 1.
        target: index of the class, or None if unlabelled.
        group: natural client of the example, if the data has one.
    """

    id: str
    pixels: Tensor
    target: int | None
    group: str | None = None

    @property
    def label(self) -> str | None:
        """Name of the class, or None if unlabelled."""
        return None if self.target is None else str(self.target)

    @property
    def content(self) -> str:
        """The pixels' bytes, as hexadecimal digits."""
        return self.pixels.numpy().tobytes().hex()

    def without_label(self) -> "ImageExample":
        """Return the same image without its class."""
        return replace(self, target=None)

    def with_answer(self, answer: int) -> "ImageExample":
        """Return the same image with the class of this index."""
        return replace(self, target=answer)


@dataclass(frozen=True)
class ImageBatch:
    """B images as pixels [B, channels, height, width] and targets [B] int64."""

    pixels: Tensor
    targets: Tensor


class ImageTask(ImageModels, ClassificationTask):
    """The image modality: classification with any image classifier of transformers.

    Args:
        name: name of the task, for reports.
        classes: names of the classes, in the order of the columns of the logits.
    """

    def __init__(self, name: str, classes: Sequence[str]):
        self.name = name
        self.classes: tuple[str, ...] = tuple(classes)
        self.options: Mapping[str, Any] = {"classes": list(self.classes)}

    def load_model(self, section: ModelConfig, role: str, device: torch.device, seed: int) -> nn.Module:
        """Return an image classifier with one column per class.

        Raises:
            UserError: the source can't be loaded, or has a different number of classes.
        """
        return self.with_columns(super().load_model(section, role, device, seed), section, role)

    def collate(self, examples: Sequence[Any]) -> ImageBatch:
        """Return a batch of images stacked along a new first dimension."""
        targets = [UNLABELLED if example.target is None else example.target for example in examples]
        return ImageBatch(torch.stack([example.pixels for example in examples]), torch.tensor(targets))

    def logits(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """Return [B, classes] float32 logits, one row per image."""
        parameter = next(model.parameters())
        return model(pixel_values=batch.pixels.to(parameter)).logits.float()

    def exhibit(self, example: Any) -> Exhibit:
        """Return the image and its class."""
        return Exhibit(example.id, truth=example.label or "", picture=picture(image_of(example.pixels.numpy())))

    def control_pixels(self, example: Any) -> Tensor:
        """Return the pixels of an image as one row, for the controls that need no model."""
        return example.pixels.flatten()

    def evidence(self, examples: Sequence[Any], features: StatisticsConfig, model: nn.Module | None = None) -> Evidence:
        """Return one row per image; see `image_evidence`."""
        return image_evidence(self, examples, features, model)
