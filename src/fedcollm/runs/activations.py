"""Measure on torch's `meta` device, where nothing takes memory, what a network keeps of one example in training.

In a network of convolutions, each layer has its own size and number of channels, so its activations do not follow from
one hidden size and a number of layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from fedcollm.config import ModelConfig

# Fitted to the memory that training and scoring of ResNet-18 and -50 took; for MobileNetV2, ConvNeXt and ViT the
# estimates of training are then between 0.8 and 1.2 of what was measured:
_TRAINING = 1.3  # memory of a batch in training, in multiples of what is kept of it: gradients, and copies in kernels
_SCORING = 0.2  # what an allocator holds of a batch in scoring, in the same unit


@dataclass(frozen=True)
class Activations:
    """Bytes of the activations of one example in float32.

    Attributes:
        kept: what the backward pass needs.
        passing: inputs and outputs of the layer where they are largest.
    """

    kept: int
    passing: int

    @property
    def training(self) -> float:
        """Bytes of one example in a training step."""
        return _TRAINING * self.kept + self.passing

    @property
    def scoring(self) -> float:
        """Bytes of one example in scoring."""
        return _SCORING * self.kept + self.passing


@runtime_checkable
class Measurable(Protocol):
    """Base models whose activations are measured."""

    def typical_input(self, section: ModelConfig) -> Mapping[str, Tensor]:
        """Return the keyword arguments of a network's forward pass for one example, on torch's `meta` device."""
        ...


def measure(network: nn.Module, inputs: Mapping[str, Tensor]) -> Activations:
    """Return the activations of one example.

    Args:
        network: a network with its adapter, on torch's `meta` device.
        inputs: the keyword arguments of its forward pass for one example.
    """
    kept: dict[int, tuple[int, Tensor]] = {}  # storage to its size; the tensor keeps it from being used again
    own = {_storage(tensor) for tensor in (*network.parameters(), *network.buffers())}
    largest = 0

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    def as_it_is(tensor: Tensor) -> Tensor:
        return tensor

    def compare(module: nn.Module, given: Any, made: Any) -> None:
        nonlocal largest
        tensors = [value for value in (*given, made) if isinstance(value, Tensor)]
        largest = max(largest, sum(tensor.numel() * tensor.element_size() for tensor in tensors))

    hooks = [module.register_forward_hook(compare) for module in network.modules()]
    try:
        with cast(Any, torch.autograd.graph).saved_tensors_hooks(keep, as_it_is):
            network.train()(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return Activations(sum(size for size, _ in kept.values()), largest)


def _storage(tensor: Tensor) -> int:
    return cast(Any, tensor.untyped_storage())._cdata
