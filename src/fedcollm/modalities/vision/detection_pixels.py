"""The pixels that a detector reads: images scaled to one size and normalized as its `preprocessor_config.json` says.

Every image is scaled to the same height and width, whatever its own proportions are. A batch then needs no padding, and
an image's result does not depend on the others in its batch. Boxes are relative to the image, so they scale with it.
Configurations that keep the proportions (`shortest_edge`, as those of DETR and YOLOS do) get a square of that side.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.modalities.vision.cell_detector import SIDE
from fedcollm.modalities.vision.detectors import DETECTORS
from fedcollm.models.made import network_name
from fedcollm.models.pretrained import base_directory, from_pretrained, transformers_class

_ADVICE = (
    "Give the directory or hub id of a detector with its preprocessor_config.json, which says how its images are "
    "scaled and normalized."
)


@dataclass(frozen=True)
class DetectionPixels:
    """Makes pixels for one detector out of RGB images.

    Attributes:
        height: height of all images that it makes.
        width: their width.
        mean: what is subtracted from each channel, whose values are from 0 to 1.
        deviation: what each channel is divided by.
        resample: the filter that scales the image, a number of Pillow.
    """

    height: int
    width: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    deviation: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: int = int(Image.Resampling.BILINEAR)

    def __call__(self, image: Image.Image) -> Tensor:
        """Return [3, height, width] float32."""
        scaled = image
        if image.size != (self.width, self.height):
            scaled = image.resize((self.width, self.height), Image.Resampling(self.resample))
        values = np.asarray(scaled, dtype=np.float32) / np.float32(255)  # [height, width, 3]
        normalized = (values - np.array(self.mean, np.float32)) / np.array(self.deviation, np.float32)
        return torch.from_numpy(np.ascontiguousarray(normalized.transpose(2, 0, 1)))  # pyright: ignore

    def to_wire(self) -> Mapping[str, Any]:
        """Return all settings as plain values; two with equal ones make equal pixels."""
        return asdict(self)


def pixels_of(section: ModelConfig) -> DetectionPixels:
    """Return what makes a detector's pixels.

    Args:
        section: the section `slm` or `llm` of the configuration.

    Raises:
        UserError: the source does not exist, or does not say how its images are prepared.
    """
    if network_name(section.source) in DETECTORS:
        return DetectionPixels(SIDE, SIDE)
    place = base_directory(section.source, None)
    own = from_pretrained(transformers_class("AutoImageProcessor"), place, _ADVICE, backend="pil")
    height, width = _size(own.size, section.source)
    none: tuple[Any, Any] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    mean, deviation = (own.image_mean, own.image_std) if own.do_normalize else none
    return DetectionPixels(height, width, _floats(mean), _floats(deviation), int(own.resample))


def _size(size: Any, source: str) -> tuple[int, int]:
    """Return height and width; raise UserError if the configuration gives neither these nor a shortest edge."""
    known: dict[str, Any] = dict(size)
    side = known.get("shortest_edge")
    height, width = known.get("height") or side, known.get("width") or side
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
        raise UserError(
            f"model source {source!r}: size {known} in its preprocessor_config.json is no size. Set height and width, "
            "or shortest_edge."
        )
    return height, width


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
