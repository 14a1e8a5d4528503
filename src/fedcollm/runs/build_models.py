"""From a configuration to base networks with adapters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_model, save_model
from torch import nn

from fedcollm.config import ClientConfig, RunConfig
from fedcollm.errors import UserError
from fedcollm.modalities.base import Modality
from fedcollm.models.adapters import add_adapter, resolve_device, resolve_dtype
from fedcollm.models.fused.patch import fuse
from fedcollm.progress import say
from fedcollm.seeding import derive_seed
from fedcollm.training.fine_tuning import fit

_WEIGHTS = "weights.safetensors"  # of networks that are not transformers' own


def set_matmul_precision(config: RunConfig) -> None:
    """Let the float32 products of adapters on a bfloat16 base be taken in bfloat16, as the base's are: 2-4 x faster."""
    device = resolve_device(config.device)
    dtypes = {resolve_dtype(model.dtype, device) for model in (config.slm, config.llm)}
    torch.set_float32_matmul_precision("medium" if torch.bfloat16 in dtypes else "highest")


def build_model(config: RunConfig, role: str, modality: Modality, public: Sequence[Any], base: Path) -> peft.PeftModel:
    """Return a role's frozen base with its adapter, on its device, in evaluation mode.

    Args:
        config: of the run.
        role: `slm` or `llm`.
        modality: of that role.
        public: D_a, for a base that is pretrained on it.
        base: directory for base models that the run makes itself.

    Raises:
        UserError: the base, the adapter or the data for pretraining don't fit.
    """
    section = config.slm if role == "slm" else config.llm
    device, made = resolve_device(config.device), base / role
    seed = derive_seed(config.seed, "base", role)
    if section.pretrain_epochs and not made.is_dir():
        network = modality.load_model(section, role, device, seed).to(device)
        say(f"pretraining {role} ({section.source}) on the public part: {section.pretrain_epochs} epochs")
        _pretrain(config, role, modality, network, public)
        _save(network, made)
    if (made / "config.json").is_file():  # transformers' own form: the bits that a resumed run will have
        section = section.model_copy(update={"source": str(made), "layers": None})
    network = modality.load_model(section, role, device, seed).to(device)
    if (made / _WEIGHTS).is_file():
        load_model(network, made / _WEIGHTS)
    tuned = add_adapter(
        network,
        section.adapter,
        seed=derive_seed(config.seed, "adapter", role),
        causal_lm=modality.causal_lm,
        base_name=getattr(network, "name_or_path", "") or str(made),
    )
    fuse(tuned)
    return tuned


def _save(network: nn.Module, directory: Path) -> None:
    """Write a base that the run made: in transformers' own form where it has one, else its weights alone."""
    if hasattr(network, "save_pretrained"):
        network.save_pretrained(directory)  # pyright: ignore
        return
    directory.mkdir(parents=True)
    save_model(network, str(directory / _WEIGHTS))


def _pretrain(config: RunConfig, role: str, modality: Modality, network: nn.Module, public: Sequence[Any]) -> None:
    """Train the whole base on the labelled public part, as pretraining would have."""
    section = config.slm if role == "slm" else config.llm
    labelled = [example for example in public if example.label is not None]
    if not labelled:
        raise UserError(
            f"{role}.pretrain_epochs: {section.pretrain_epochs} needs labelled public examples; set task.public_size."
        )
    settings = ClientConfig(
        epochs=section.pretrain_epochs,
        batch_size=config.server.batch_size,
        learning_rate=config.server.learning_rate,
    )
    seed = derive_seed(config.seed, "warm_up", role)
    fit(modality, network, labelled, settings, seed, f"pretraining {role}")
