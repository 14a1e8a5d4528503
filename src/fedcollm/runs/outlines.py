"""Outlines of models: what `estimate` needs to know of a network, without its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fedcollm.config import ModelConfig
from fedcollm.data.modality_builders import BaseModels
from fedcollm.messages import Adapter
from fedcollm.modalities.text.models import TextModels, shape_text
from fedcollm.models.adapters import parameter_counts, trainable
from fedcollm.models.pretrained import text_sizes
from fedcollm.models.quantized import frozen_linear
from fedcollm.runs.activations import Activations, Measurable, measure
from fedcollm.runs.build_models import adapted
from fedcollm.storage import cached_json

if TYPE_CHECKING:
    import peft

#: What is kept of a language model's configuration.
_NUMBERS = ("hidden_size", "max_position_embeddings", "num_hidden_layers", "num_labels", "vocab_size")
#: What an outline depends on besides the configuration of the model.
_PACKAGES = ("fedcollm", "peft", "torch", "transformers")
#: Version of the way in which outlines are made, part of the key of the cache.
_VERSION = 3


@dataclass(frozen=True)
class Outline:
    """What an estimate needs to know of a network with its adapter.

    Attributes:
        frozen: number of frozen parameters of the base.
        adapter: the trainable tensors, which may be on torch's `meta` device.
        shape: the configuration of the base, or an object with the numbers in it; None if the base has none.
        activations: what is kept of an example, if that is measured.
        linear: number of those frozen parameters that `quantization` packs.
    """

    frozen: int
    adapter: Adapter
    shape: Any
    activations: Activations | None = None
    linear: int = 0

    @classmethod
    def of(cls, network: nn.Module, inputs: Mapping[str, torch.Tensor] | None = None) -> "Outline":
        """Return the outline of a network that `network_outline` made, with its activations if there are inputs."""
        adapter: Adapter = {name: tensor.detach() for name, tensor in trainable(network).items()}
        shape = getattr(network, "config", None)
        if not hasattr(shape, "hidden_size"):  # a language model that reads more than text nests its sizes
            shape = text_sizes(shape)
        activations = measure(network, inputs) if inputs is not None else None
        linear = sum(layer.weight.numel() for _, layer in frozen_linear(network))
        return cls(parameter_counts(network)[1], adapter, shape, activations, linear)

    def to_json(self) -> dict[str, Any]:
        """Return the outline of a language model as a JSON value."""
        tensors = {name: [*tensor.shape, str(tensor.dtype)] for name, tensor in self.adapter.items()}
        numbers = {name: getattr(self.shape, name) for name in _NUMBERS if hasattr(self.shape, name)}
        return {"frozen": self.frozen, "adapter": tensors, "shape": numbers, "linear": self.linear}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Outline":
        """Return the outline that `to_json` wrote."""
        adapter = {
            name: torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")), device="meta")
            for name, (*shape, dtype) in value["adapter"].items()
        }
        return cls(value["frozen"], adapter, SimpleNamespace(**value["shape"]), linear=value["linear"])


def network_outline(model: ModelConfig, known: BaseModels) -> "peft.PeftModel":
    """Return a role's network with its adapter on torch's `meta` device, where weights take no memory.

    Args:
        model: configuration of the base and the adapter.
        known: the modality's knowledge of base models.
    """
    return adapted(known.outline(model), model.adapter, known)


def outline(model: ModelConfig, known: BaseModels) -> Outline:
    """Return the outline of a role's network with its adapter.

    That of one of the text task's models is kept in the cache, because transformers and PEFT take seconds to import.

    Args:
        model: configuration of the base and the adapter.
        known: the modality's knowledge of base models.

    Raises:
        UserError: the model or the adapter is not usable.
    """
    text = shape_text(model.source) if type(known) is TextModels else None
    if text is None:
        inputs = known.typical_input(model) if isinstance(known, Measurable) else None
        return Outline.of(network_outline(model, known), inputs)
    made_of = [_VERSION, {name: metadata.version(name) for name in _PACKAGES}, text, model.model_dump(mode="json")]
    return Outline.from_json(
        cached_json("outline", made_of, lambda: Outline.of(network_outline(model, known)).to_json())
    )
