"""Pretrained image classifiers of transformers, with a head that has the task's classes; see `Classifiers`."""

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from fedcollm.config import ModelConfig
from fedcollm.modalities.classifiers import Classifiers, modules
from fedcollm.modalities.vision.preprocessing import load_preprocessor

#: Side of an image and of a patch, in pixels, if a configuration does not say.
_SIDE, _PATCH = 224, 16


class ClassifierModels(Classifiers):
    """The part of the modality of image files that deals with models.

    Args:
        classes: names of the task's classes.
    """

    loader: ClassVar[str] = "AutoModelForImageClassification"
    architectures: ClassVar[tuple[str, ...]] = ("ForImageClassification", "ForImageClassificationWithTeacher")
    heads: ClassVar[tuple[str, ...]] = ("classifier", "cls_classifier", "distillation_classifier", "head", "fc")
    what: ClassVar[str] = "image classifier"
    advice: ClassVar[str] = (
        "Give a directory or a hub id of an image classifier that this version of transformers can load."
    )
    others: ClassVar[str] = "ViT, Swin, ConvNeXt or ResNet"

    def adapted_layers(self, network: nn.Module) -> list[str]:
        """Return the names of all linear layers except the head and, in a convolutional network, of convolutions.

        A network whose only convolution cuts the image into patches (ViT, Swin) is no convolutional one. Convolutions
        in groups, such as depthwise ones, get no adapter: LoRA's A and B would have to be cut into groups too.
        """
        heads = set(self.head_names(network))
        linear = [name for name, module in modules(network) if type(module) is nn.Linear and name not in heads]
        convolutions = [(name, module) for name, module in modules(network) if isinstance(module, nn.Conv2d)]
        if len(convolutions) > 1:
            linear += [name for name, module in convolutions if module.groups == 1]
        return linear

    def footprint(self, example: Any, shape: Any, scoring: bool = False) -> tuple[int, int]:
        """Return the number of patches of an image plus its class token, and its single row of logits."""
        side, patch = (_number(getattr(shape, key, None)) for key in ("image_size", "patch_size"))
        return ((side or _SIDE) // (patch or _PATCH)) ** 2 + 1, 1

    def typical_input(self, section: ModelConfig) -> dict[str, Tensor]:
        """Return the pixels of one image, [1, 3, height, width] on torch's `meta` device, for a forward pass.

        Raises:
            UserError: the source can't be read, or does not say how its images are prepared.
        """
        return {"pixel_values": torch.empty(1, 3, *load_preprocessor(section).shape, device="meta")}


def _number(value: Any) -> int:
    """Return a size in pixels, of which configurations give one or one per axis; 0 if there is none."""
    first: Any = next(iter(cast("list[Any]", value)), None) if isinstance(value, (list, tuple)) else value
    return first if isinstance(first, int) else 0
