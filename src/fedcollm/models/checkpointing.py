"""Gradient checkpointing: less memory for more time (Chen et al., arXiv 1604.06174)."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.utils import checkpoint

from fedcollm.errors import SECTION, UserError

if TYPE_CHECKING:
    import peft


def recompute_layers(model: "peft.PeftModel") -> None:
    """Let a model keep only the input of each layer in training, and compute the layer again in the backward pass.

    The gradients are the same, bit for bit: the layer is computed again from the same input, with the same dropout.

    Args:
        model: a model, perhaps made fast by `fuse`; in evaluation mode nothing changes.

    Raises:
        UserError: the model's architecture has no such layers.
    """
    from transformers import modeling_layers

    network: Any = cast(Any, model).get_base_model()
    layers = [m for m in network.modules() if isinstance(m, cast(Any, modeling_layers).GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"{SECTION}gradient_checkpointing: {type(network).__name__} has no layers that can be computed again. Set "
            "it to false, and set micro_batch_size in client and server if memory runs out."
        )
    for layer in layers:
        vars(layer)["forward"] = functools.partial(_recomputed, layer, layer.forward)


def _recomputed(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the output of a layer, which is computed again in the backward pass if the layer is in training."""
    if not (layer.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    if "past_key_values" in kwargs:  # the second pass would add to it once more
        kwargs["past_key_values"] = None
    return cast(Any, checkpoint).checkpoint(forward, *args, use_reentrant=False, **kwargs)
