"""From a configuration to base networks with adapters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import peft
import torch
from torch import nn

from fedcollm.config import ModelConfig, RunConfig
from fedcollm.data.catalogue import base_models
from fedcollm.errors import UserError
from fedcollm.modalities.base import Modality
from fedcollm.modalities.vision.models import VISION_MODELS
from fedcollm.models.adapters import add_adapter, resolve_device, resolve_dtype
from fedcollm.models.fused.patch import fuse
from fedcollm.progress import say
from fedcollm.seeding import derive_seed
from fedcollm.training.fine_tuning import fit

__all__ = ["VISION_MODELS", "build_model", "set_matmul_precision"]


def set_matmul_precision(config: RunConfig) -> None:
    """Let the float32 products of adapters on a bfloat16 base be taken in bfloat16, as the base's are: 2-4 x faster."""
    device = resolve_device(config.device)
    dtypes = {resolve_dtype(model.dtype, device) for model in (config.slm, config.llm)}
    torch.set_float32_matmul_precision("medium" if torch.bfloat16 in dtypes else "highest")


def build_model(
    config: RunConfig, role: str, model: ModelConfig, task: Modality, public: Sequence[Any], base: Path
) -> peft.PeftModel:
    """Return a role's frozen base with its adapter, on its device, in evaluation mode."""
    device, known, made = resolve_device(config.device), base_models(config.task), base / role
    seed = derive_seed(config.seed, "base", role)
    reloaded = model.model_copy(update={"source": str(made), "layers": None})
    network = cast(Any, known.load_model(reloaded if made.is_dir() else model, role, device, seed))
    if model.pretrain_epochs and not made.is_dir():
        say(f"pretraining {role} ({model.source}) on the public part: {model.pretrain_epochs} epochs")
        _pretrain(config, role, model, task, network, public)
        network.save_pretrained(made)
        network = cast(Any, known.load_model(reloaded, role, device, seed))  # the bits that a resumed run will have
    tuned = add_adapter(
        network,
        **dict(model.adapter),
        seed=derive_seed(config.seed, "adapter", role),
        causal_lm=known.causal_lm,
        base_name=network.name_or_path or str(made),
    )
    fuse(tuned)
    return tuned


def _pretrain(
    config: RunConfig, role: str, model: ModelConfig, task: Modality, network: nn.Module, public: Sequence[Any]
) -> None:
    """Train the whole base on the labelled public part, as pretraining would have."""
    labelled = [example for example in public if example.label is not None]
    if not labelled:
        raise UserError(
            f"{role}.pretrain_epochs: {model.pretrain_epochs} needs labelled public examples; set task.public_size."
        )
    fit(
        task,
        network,
        labelled,
        epochs=model.pretrain_epochs,
        batch_size=config.server.batch_size,
        learning_rate=config.server.learning_rate,
        seed=derive_seed(config.seed, "warm_up", role),
        where=f"pretraining {role}",
    )
