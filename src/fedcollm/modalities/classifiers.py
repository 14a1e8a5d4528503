"""Pretrained classifiers of transformers, of images or of audio, with a head that has the task's classes.

A classifier whose head has other classes gets a fresh head with random weights. A frozen random head could only be
fitted through the rest of the network, so it is trained as a whole, and travels with the adapter.

Batch normalization always computes with the statistics of pretraining, in training too. Its running mean and variance
are no parameters: they would drift at each client, would not travel with the adapter, and would tell a client's data.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.models.adapters import resolve_dtype
from fedcollm.models.pretrained import SHIPPED, base_directory, from_pretrained, transformers_class

#: Standard deviation of the weights of a fresh head, as in ViT (Dosovitskiy et al., arXiv 2010.11929).
_HEAD_DEVIATION = 0.02

#: End of the name of a parameter that only random masks need, which training never uses here.
MASKS = "masked_spec_embed"


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


class Classifiers(ABC):
    """The part of the classification of images or audio that deals with pretrained models.

    Args:
        classes: names of the task's classes.

    Attributes:
        loader: the class of transformers that loads a classifier.
        architectures: ends of the names of architectures that are classifiers.
        heads: parts of the names of output layers.
        inner: names of linear layers in front of the output layer, which a model that is no classifier yet lacks too.
        what: what a classifier is called in messages.
        advice: what to give instead of a source that can't be loaded.
        others: architectures to choose instead of one whose output layer is not known.
    """

    causal_lm: ClassVar[bool] = False
    loader: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    heads: ClassVar[tuple[str, ...]]
    inner: ClassVar[tuple[str, ...]] = ()
    what: ClassVar[str]
    advice: ClassVar[str]
    others: ClassVar[str]

    def __init__(self, classes: Sequence[str]):
        self.classes: tuple[str, ...] = tuple(classes)

    def load_model(self, section: ModelConfig, role: str, device: torch.device, seed: int) -> nn.Module:
        """Return a classifier with one column per class.

        Args:
            section: the section `llm` or `slm` of the configuration. Its source is a directory or a hub id.
            role: `slm` or `llm`.
            device: the device on which the network will run.
            seed: seed of a fresh head.

        Raises:
            UserError: the source can't be loaded, is no classifier, or lacks weights other than those of a head.
        """
        refuse_cut(section, self.what, f"{role}.")
        dtype, place, loader = (
            resolve_dtype(section.dtype, device),
            self.place(section),
            transformers_class(self.loader),
        )
        network, report = from_pretrained(loader, place, self.advice, dtype=dtype, output_loading_info=True)
        missing = {name for name in report["missing_keys"] if not name.endswith(MASKS)}
        self._give_head(network, section.source, seed, missing)
        heads = tuple(f"{name}." for name in (*self.head_names(network), *self.inner))
        if others := sorted(name for name in missing if not name.startswith(heads)):
            raise UserError(f"{role}.source {section.source!r} is no {self.what}: it has no {others[0]}. {self.advice}")
        return freeze_statistics(network).to(device)

    def _give_head(self, network: Any, source: str, seed: int, missing: set[str]) -> None:
        """Replace the head by a fresh one if it has other classes than the task, or has no weights.

        Raises:
            UserError: the network has no output layer that we know.
        """
        names = self.head_names(network)
        if not names:
            raise UserError(
                f"model source {source!r} has no output layer named {', '.join(self.heads[:-1])} or {self.heads[-1]}. "
                f"Choose another architecture, such as {self.others}."
            )
        for number, name in enumerate(name for name in self.inner if f"{name}.weight" in missing):
            layer = network.get_submodule(name)
            network.set_submodule(name, FreshHead(layer.in_features, layer.out_features, seed + len(names) + number))
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
        refuse_cut(section, self.what)
        self.place(section)

    def outline(self, section: ModelConfig) -> nn.Module:
        """Return the same network without weights.

        Raises:
            UserError: the source can't be read, is no classifier, or a part of its layers is asked for.
        """
        refuse_cut(section, self.what)
        shape, missing = self.load_shape(section), set[str]()
        with torch.device("meta"):
            network = transformers_class(self.loader).from_config(shape)
            if not self._has_head(shape):
                missing = {f"{name}.weight" for name in (*self.head_names(network), *self.inner)}
                missing = {name for name in missing if name in network.state_dict()}
            self._give_head(network, section.source, 0, missing)
        return freeze_statistics(network)

    def is_pretrained(self, section: ModelConfig) -> bool:
        """Return False if the classifier gets a fresh head, whose weights depend on the run's seed."""
        shape = self.load_shape(section)
        return self._has_head(shape) and shape.num_labels == len(self.classes)

    def trained_modules(self, network: nn.Module) -> list[str]:
        """Return the names of fresh heads."""
        return [name for name, module in modules(network) if isinstance(module, FreshHead)]

    @abstractmethod
    def adapted_layers(self, network: nn.Module) -> list[str] | None:
        """Return the names of the layers that `adapter.targets: auto` stands for."""

    def head_names(self, network: nn.Module) -> list[str]:
        """Return the names of a classifier's output layers: one, or two of a distilled DeiT, which averages them."""
        linear = (name for name, module in modules(network) if isinstance(module, nn.Linear))
        return [name for name in linear if any(part in self.heads for part in name.split("."))]

    def load_shape(self, section: ModelConfig) -> Any:
        """Return the configuration of a classifier.

        Raises:
            UserError: the source can't be read.
        """
        return from_pretrained(transformers_class("AutoConfig"), self.place(section), self.advice)

    def place(self, section: ModelConfig) -> str:
        """Return the directory or hub id of a source.

        Raises:
            UserError: it is neither.
        """
        if section.source in SHIPPED or Path(section.source).suffix == ".gguf":
            raise UserError(f"model source {section.source!r} is a language model. {self.advice}")
        return base_directory(section.source, None)

    def _has_head(self, shape: Any) -> bool:
        """Return whether the weights that belong to a configuration are those of a classifier."""
        return any(str(name).endswith(self.architectures) for name in shape.architectures or ())


def refuse_cut(section: ModelConfig, what: str, prefix: str = "") -> None:
    """Refuse to keep only some layers of a classifier.

    Args:
        section: the section `llm` or `slm` of the configuration.
        what: what the model is called in messages.
        prefix: `llm.` or `slm.`, if the section is known, for the message.

    Raises:
        UserError: `layers` is set.
    """
    if section.layers is not None:
        raise UserError(
            f"{prefix}layers {section.layers}: an {what} can't be cut to some of its layers. Set {prefix}layers: null."
        )


def freeze_statistics(network: nn.Module) -> nn.Module:
    """Make batch normalization compute with its running statistics always, and return the network."""
    for _, module in modules(network):
        if type(module) in _FROZEN:
            module.__class__ = _FROZEN[type(module)]
            module.train(False)
    return network


def modules(network: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """Return the modules of a network with their names."""
    return cast(Any, network).named_modules()
