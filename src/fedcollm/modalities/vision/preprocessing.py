"""How a classifier wants its images: scaled, cropped and normalized as its own `preprocessor_config.json` says."""

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.models.pretrained import base_directory, from_pretrained, transformers_class

_ADVICE = (
    "Give the directory or hub id of an image classifier with its preprocessor_config.json, which says how its images "
    "are scaled and normalized."
)


class Preprocessor:
    """Makes pixels for one model out of RGB images.

    It calls the processor of transformers that computes with Pillow and NumPy, on every machine: that of torchvision
    rounds differently, and all parties of a run must see the same pixels.

    Args:
        processor: an image processor of transformers.
        source: the model's source, for messages.

    Attributes:
        shape: height and width of all images that it makes.

    Raises:
        UserError: images of different sizes would stay so, or the pixels are not in three channels.
    """

    def __init__(self, processor: Any, source: str):
        self._processor = processor
        shapes = [tuple(self(Image.new("RGB", size)).shape) for size in ((40, 20), (20, 40))]
        if shapes[0] != shapes[1] or len(shapes[0]) != 3 or shapes[0][0] != 3:
            raise UserError(
                f"model source {source!r}: its preprocessor_config.json makes pixels of shapes {shapes[0]} and "
                f"{shapes[1]} out of two images. A batch needs one shape, with three channels: set do_resize to true "
                "and size to a height and a width, or do_center_crop to true."
            )
        self.shape: tuple[int, int] = (shapes[0][1], shapes[0][2])

    def __call__(self, image: Image.Image) -> Tensor:
        """Return [3, height, width] float32."""
        return self._processor(image, return_tensors="pt")["pixel_values"][0].to(torch.float32)

    def to_wire(self) -> Mapping[str, Any]:
        """Return all settings as plain values; two preprocessors with equal ones make equal pixels."""
        return {"processor": type(self._processor).__name__, **self._processor.to_dict()}


def load_preprocessor(section: ModelConfig) -> Preprocessor:
    """Return the preprocessor of a model.

    Raises:
        UserError: the source does not exist, or does not say how its images are prepared.
    """
    place = base_directory(section.source, None)
    own = from_pretrained(transformers_class("AutoImageProcessor"), place, _ADVICE, backend="pil")
    return Preprocessor(own, section.source)
