"""The server's LLM, spread over the processes that torchrun started: how the leader spreads it, and what others do.

Only the leader runs rounds, speaks to clients and writes files. The other processes hold parts of the LLM.
"""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from fedcollm.config import AdapterConfig, ModelConfig
from fedcollm.errors import UserError
from fedcollm.modalities.base import Modality
from fedcollm.modalities.text.models import TextModels
from fedcollm.modalities.text.spread import TextSpread, text_spread
from fedcollm.models.adapters import resolve_dtype
from fedcollm.models.pretrained import load_causal_lm, transformers_class
from fedcollm.models.processes import STOP, Processes
from fedcollm.models.sharded import adapter_of, shard
from fedcollm.progress import say

if TYPE_CHECKING:
    from peft import PeftModel

_LOAD = "load"


def to_spread(section: ModelConfig, modality: Modality, device: torch.device, processes: Processes) -> ModelConfig:
    """Return an LLM's section with which each process loads the LLM on the CPU as it will run on its own device.

    Args:
        section: the section `llm`.
        modality: the modality as the LLM needs it.
        device: what the configuration's `device` stands for.
        processes: those that will hold it.

    Raises:
        UserError: this LLM can't be spread, or not on this device.
    """
    if not isinstance(modality, TextModels):
        raise UserError(
            f"torchrun started {processes.count} processes, and only a causal language model can be spread over "
            f"several. Start the task {modality.name} without torchrun."
        )
    if section.device_map is not None:
        raise UserError(
            f"llm.device_map {section.device_map} spreads the LLM within one process, and torchrun started "
            f"{processes.count}. Set llm.device_map: null, or start without torchrun."
        )
    for key, value in (("gradient_checkpointing", False), ("quantization", "none")):
        if getattr(section, key) != value:
            raise UserError(
                f"llm.{key} is for one process, and torchrun started {processes.count}. Set it to "
                f"{str(value).lower()}; server.micro_batch_size saves memory too."
            )
    if device.type != processes.device.type or device.index not in (None, processes.device.index):
        raise UserError(
            f"device: {device} can't be used with torchrun, where each process takes its own {processes.device.type} "
            "device. Set device: auto, and choose GPUs by the environment variable CUDA_VISIBLE_DEVICES (empty: none)."
        )
    attention = "default" if section.attention == "auto" and device.type != "cpu" else section.attention
    dtype = str(resolve_dtype(section.dtype, device)).removeprefix("torch.")
    return section.model_copy(update={"dtype": dtype, "attention": attention})


def spread_over(
    processes: Processes, tuned: "PeftModel", base: set[nn.Parameter], section: ModelConfig, seed: int
) -> TextSpread:
    """Spread a model with an adapter, which is whole in this process, over all processes. Only the leader calls this.

    Args:
        processes: those that will hold it.
        tuned: the model, on the CPU.
        base: the parameters of its base.
        section: its section, from `to_spread`.
        seed: seed of the adapter's initial values.
    """
    adapter = {str(i): tensor for i, tensor in enumerate(adapter_of(tuned, base))}
    values = {
        "place": str(cast(Any, tuned).get_base_model().name_or_path),
        "dtype": section.dtype,
        "attention": section.attention,
        "adapter": section.adapter.model_dump(mode="json", exclude={"start"}),
        "seed": seed,
        "precision": torch.get_float32_matmul_precision(),
    }
    processes.request(_LOAD, values, adapter)
    spread = text_spread(tuned, processes, shard(tuned, base, processes))
    held = ", ".join(f"{one / 1e6:,.1f}" for one in spread.held)
    say(f"the LLM's base is spread over {processes.count} processes: {held} MB")
    return spread


def follow(processes: Processes) -> None:
    """Do what the leader requests until it ends. All other processes than the leader call this."""
    spread = None
    while True:
        name, values, tensors = processes.requested()
        if name == STOP:
            return
        if name == _LOAD:
            spread = None  # its memory is needed
            spread = _loaded(values, list(tensors.values()), processes)
        elif spread is not None:
            spread.answer(name, values, tensors)


def _loaded(values: dict[str, Any], adapter: list[torch.Tensor], processes: Processes) -> TextSpread:
    """Load the model that the leader loads, and keep this process's part of it."""
    from fedcollm.runs.build_models import adapted, set_switches

    transformers_class("logging").set_verbosity_error()  # the leader says the same
    set_switches(values["precision"])
    dtype: torch.dtype = getattr(torch, values["dtype"])
    network = load_causal_lm(values["place"], dtype, values["attention"], processes.device.type)
    base = set(network.parameters())
    tuned = adapted(network, AdapterConfig.model_validate(values["adapter"]), TextModels(), values["seed"])
    with torch.no_grad():
        for parameter, tensor in zip(adapter_of(tuned, base), adapter, strict=True):
            parameter.copy_(tensor)
    return text_spread(tuned, processes, shard(tuned, base, processes))
