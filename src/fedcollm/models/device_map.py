"""Where accelerate has put the layers of a model that it spread over the GPUs of one process (`device_map`)."""

from typing import Any

import torch
from torch import nn

from fedcollm.config import ModelConfig
from fedcollm.errors import SECTION, UserError
from fedcollm.progress import say


def check_placed(network: nn.Module, section: ModelConfig, device: torch.device) -> None:
    """Check that a network was spread over devices as its section says.

    Args:
        network: the network, as its modality loaded it.
        section: its section, with a `device_map`.
        device: what the configuration's `device` stands for.

    Raises:
        UserError: this kind of network is not spread, or it does not fit on the GPUs. A layer that accelerate would
            move in and out of a GPU's memory can't have a trained adapter, because PEFT gives it one without values.
    """
    key = f"{SECTION}device_map: {section.device_map}"
    if ":" in str(device):
        raise UserError(
            f"{key} takes all GPUs, and device is {device}. Set device: auto, or {SECTION}device_map: null."
        )
    if device.type != "cuda":
        say(f"device_map {section.device_map} has no effect: there is one device, {device}")
        return
    places: dict[str, Any] | None = getattr(network, "hf_device_map", None)
    if places is None and next(network.parameters()).device.type != "cuda":
        raise UserError(f"{key} is for causal language models, and this is none. Set {SECTION}device_map: null.")
    if away := [name for name, place in (places or {}).items() if place in ("cpu", "disk")]:
        raise UserError(
            f"{key}: the GPUs are too small for {len(away)} parts of the model, from {away[0]} on. Use more GPUs, a "
            f"smaller {SECTION}dtype or another model, or several processes (torchrun), each with its own GPU."
        )
