"""Pretrained image classifiers of transformers, with a head that has the task's classes.

A classifier whose head has other classes gets a fresh head with random weights. A frozen random head could only be
fitted through the rest of the network, so it is trained as a whole, and travels with the adapter.

Batch normalization always computes with the statistics of pretraining, in training too. Its running mean and variance
are no parameters: they would drift at each client, would not travel with the adapter, and would tell a client's data.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.modalities.vision.models import refuse_cut
from fedcollm.modalities.vision.preprocessing import load_preprocessor
from fedcollm.models.adapters import resolve_dtype
from fedcollm.models.pretrained import SHIPPED, base_directory, from_pretrained, transformers_class

#: The advice for a source that can't be loaded.
GIVE_A_CLASSIFIER = "Give a directory or a hub id of an image classifier that this version of transformers can load."

#: Parts of the names of output layers; a distilled DeiT has two of them.
_HEADS = ("classifier", "cls_classifier", "distillation_classifier", "head", "fc")

#: Standard deviation of the weights of a fresh head, as in ViT (Dosovitskiy et al., arXiv 2010.11929).
_HEAD_DEVIATION = 0.02

#: Side of an image and of a patch, in pixels, if a configuration does not say.
_SIDE, _PATCH = 224, 16


class FreshHead(nn.Linear):
    """An output layer with random weights, which is trained as a whole: in float32, whatever the base's dtype is.

    Args:
        inputs: number of features.
        classes: number of classes.
        seed: seed of the weights.
    """

    def __init__(self, inputs: int, classes: int, seed: int = 0):
        cast(Any, super()).__init__(inputs, classes, dtype=torch.float32)
        if not self.weight.is_meta:
            generator = torch.Generator().manual_seed(seed)
            self.weight.data = torch.randn(classes, inputs, generator=generator) * _HEAD_DEVIATION
            self.bias.data.zero_()

    def forward(self, input: Tensor) -> Tensor:
        """Return [B, classes] float32 logits from [B, inputs] features of any dtype."""
        return functional.linear(input.to(self.weight), self.weight, self.bias)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization with the statistics of pretraining, in training too."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        """Stay in evaluation mode."""
        return super().train(False)


class FrozenBatchNorm1d(nn.BatchNorm1d):
    """The same for rows of features, as in LeViT."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm1d":
        """Stay in evaluation mode."""
        return super().train(False)


#: Batch normalization to its frozen form.
_FROZEN: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: FrozenBatchNorm1d,
    nn.BatchNorm2d: FrozenBatchNorm2d,
}


class ClassifierModels:
    """The part of the modality of image files that deals with models.

    Args:
        classes: names of the task's classes.
    """

    causal_lm: ClassVar[bool] = False

    def __init__(self, classes: Sequence[str]):
        self.classes: tuple[str, ...] = tuple(classes)

    def load_model(self, section: ModelConfig, role: str, device: torch.device, seed: int) -> nn.Module:
        """Return an image classifier with one column per class.

        Args:
            section: the section `llm` or `slm` of the configuration. Its source is a directory or a hub id.
            role: `slm` or `llm`.
            device: the device on which the network will run.
            seed: seed of a fresh head.

        Raises:
            UserError: the source can't be loaded, is no image classifier, or lacks weights other than those of a head.
        """
        refuse_cut(section, f"{role}.")
        dtype, place = resolve_dtype(section.dtype, device), _place(section)
        loader, advice = transformers_class("AutoModelForImageClassification"), GIVE_A_CLASSIFIER
        network, report = from_pretrained(loader, place, advice, dtype=dtype, output_loading_info=True)
        missing = set(report["missing_keys"])
        self._give_head(network, section.source, seed, missing)
        heads = tuple(f"{name}." for name in head_names(network))
        if others := sorted(name for name in missing if not name.startswith(heads)):
            raise UserError(
                f"{role}.source {section.source!r} is no image classifier: it has no {others[0]}. {GIVE_A_CLASSIFIER}"
            )
        return freeze_statistics(network).to(device)

    def _give_head(self, network: Any, source: str, seed: int, missing: set[str]) -> None:
        """Replace the head by a fresh one if it has other classes than the task, or has no weights.

        Raises:
            UserError: the network has no output layer that we know.
        """
        names = head_names(network)
        if not names:
            raise UserError(
                f"model source {source!r} has no output layer named {', '.join(_HEADS[:-1])} or {_HEADS[-1]}. "
                "Choose another architecture, such as ViT, Swin, ConvNeXt or ResNet."
            )
        incomplete = any(name.startswith(tuple(f"{head}." for head in names)) for name in missing)
        if network.config.num_labels == len(self.classes) and not incomplete:
            return
        for number, name in enumerate(names):
            network.set_submodule(
                name, FreshHead(network.get_submodule(name).in_features, len(self.classes), seed + number)
            )
        network.config.num_labels = len(self.classes)
        network.num_labels = len(self.classes)
        network.config.id2label = dict(enumerate(self.classes))
        network.config.label2id = {name: number for number, name in enumerate(self.classes)}

    def prepare(self, section: ModelConfig) -> None:
        """Check the source; these models are neither converted nor cut.

        Raises:
            UserError: the source does not exist, or a part of its layers is asked for.
        """
        refuse_cut(section)
        _place(section)

    def outline(self, section: ModelConfig) -> nn.Module:
        """Return the same network without weights.

        Raises:
            UserError: the source can't be read, is no image classifier, or a part of its layers is asked for.
        """
        refuse_cut(section)
        shape, missing = load_shape(section), set[str]()
        with torch.device("meta"):
            network = transformers_class("AutoModelForImageClassification").from_config(shape)
            if not _has_head(shape):
                missing = {f"{name}.weight" for name in head_names(network)}
            self._give_head(network, section.source, 0, missing)
        return network

    def is_pretrained(self, section: ModelConfig) -> bool:
        """Return False if the classifier gets a fresh head, whose weights depend on the run's seed."""
        shape = load_shape(section)
        return _has_head(shape) and shape.num_labels == len(self.classes)

    def trained_modules(self, network: nn.Module) -> list[str]:
        """Return the names of fresh heads."""
        return [name for name, module in _modules(network) if isinstance(module, FreshHead)]

    def adapted_layers(self, network: nn.Module) -> list[str]:
        """Return the names of all linear layers except the head and, in a convolutional network, of convolutions.

        A network whose only convolution cuts the image into patches (ViT, Swin) is no convolutional one. Convolutions
        in groups, such as depthwise ones, get no adapter: LoRA's A and B would have to be cut into groups too.
        """
        heads = set(head_names(network))
        linear = [name for name, module in _modules(network) if type(module) is nn.Linear and name not in heads]
        convolutions = [(name, module) for name, module in _modules(network) if isinstance(module, nn.Conv2d)]
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


def head_names(network: nn.Module) -> list[str]:
    """Return the names of a classifier's output layers: one, or two of a distilled DeiT, which averages them."""
    linear = (name for name, module in _modules(network) if isinstance(module, nn.Linear))
    return [name for name in linear if any(part in _HEADS for part in name.split("."))]


def freeze_statistics(network: nn.Module) -> nn.Module:
    """Make batch normalization compute with its running statistics always, and return the network."""
    for _, module in _modules(network):
        if type(module) in _FROZEN:
            module.__class__ = _FROZEN[type(module)]
            module.train(False)
    return network


def load_shape(section: ModelConfig) -> Any:
    """Return the configuration of a classifier.

    Raises:
        UserError: the source can't be read.
    """
    return from_pretrained(transformers_class("AutoConfig"), _place(section), GIVE_A_CLASSIFIER)


def _place(section: ModelConfig) -> str:
    """Return the directory or hub id of a source; raise UserError if it is neither."""
    if section.source in SHIPPED or Path(section.source).suffix == ".gguf":
        raise UserError(f"model source {section.source!r} is a language model. {GIVE_A_CLASSIFIER}")
    return base_directory(section.source, None)


def _has_head(shape: Any) -> bool:
    """Return whether the weights that belong to a configuration are those of an image classifier."""
    return any("ForImageClassification" in name for name in shape.architectures or ())


def _modules(network: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    return cast(Any, network).named_modules()


def _number(value: Any) -> int:
    """Return a size in pixels, of which configurations give one or one per axis; 0 if there is none."""
    first: Any = next(iter(cast("list[Any]", value)), None) if isinstance(value, (list, tuple)) else value
    return first if isinstance(first, int) else 0
