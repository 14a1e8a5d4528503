"""From a configuration to base networks with adapters, and to what a text task must know of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import peft
import torch
from torch import nn
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from fedcollm.config import ModelConfig, RunConfig
from fedcollm.data.catalogue import PairFacts, TextModelFacts
from fedcollm.errors import UserError
from fedcollm.modalities.base import Task
from fedcollm.models.adapters import add_adapter, resolve_device, resolve_dtype
from fedcollm.models.fused.patch import fuse
from fedcollm.models.pretrained import (
    base_directory,
    even_layers,
    load_causal_lm,
    load_config,
    load_tokenizer,
    start_tokens,
)
from fedcollm.progress import say
from fedcollm.seeding import derive_seed
from fedcollm.training.fine_tuning import fit

#: Common to all of `VISION_MODELS`: 8 x 8 grey images of ten classes.
VISION_SHAPE: Mapping[str, Any] = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}

#: Image classifiers made from a configuration, with random weights: pair them with `pretrain_epochs`.
VISION_MODELS: Mapping[str, Mapping[str, int]] = {
    "vit-digits-large": {"hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 192},
    "vit-digits-small": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
}


def set_matmul_precision(config: RunConfig) -> None:
    """Let the float32 products of adapters on a bfloat16 base be taken in bfloat16, as the base's are: 2-4 x faster."""
    device = resolve_device(config.device)
    dtypes = {resolve_dtype(model.dtype, device) for model in (config.slm, config.llm)}
    torch.set_float32_matmul_precision("medium" if torch.bfloat16 in dtypes else "highest")


def text_models(config: RunConfig) -> PairFacts:
    """The tokenizer, output space and context length of each role, which both share unless they may differ.

    Raises:
        UserError: the two roles don't share a tokenizer, and `server.distillation.across_tokenizers` is not set.
    """
    tokenizer, other = load_tokenizer(config.slm.source), None
    if config.llm.source != config.slm.source:
        other = load_tokenizer(config.llm.source)
    configs = [load_config(model.source) for model in (config.slm, config.llm)]
    context = min(getattr(c, "max_position_embeddings", 1_000_000) for c in configs)
    if other is None or other.get_vocab() == tokenizer.get_vocab():
        size = min(c.vocab_size for c in configs)
        facts = TextModelFacts(tokenizer, size, context, start_tokens(tokenizer))
        return PairFacts(facts, facts)
    if not config.server.distillation.across_tokenizers:
        raise UserError(
            f"llm.source {config.llm.source!r} ({len(other)} tokens) and "
            f"slm.source {config.slm.source!r} ({len(tokenizer)} tokens) don't share a tokenizer, "
            "so their outputs can't be compared row by row. Choose two models of one family, or set "
            "server.distillation.across_tokenizers: true to compare them over the tokens that they share."
        )
    pair = zip((tokenizer, other), configs, strict=True)
    return PairFacts(*(TextModelFacts(own, shape.vocab_size, context, start_tokens(own)) for own, shape in pair))


def build_model(
    config: RunConfig, role: str, model: ModelConfig, task: Task, public: Sequence[Any], base: Path
) -> peft.PeftModel:
    """A role's frozen base with its adapter, on its device, in evaluation mode."""
    device = resolve_device(config.device)
    dtype = resolve_dtype(model.dtype, device)
    made = base / role
    network, place = _base_model(config, role, model, dtype, made)
    network.to(device)
    if model.pretrain_epochs and not made.is_dir():
        say(f"pretraining {role} ({model.source}) on the public part: {model.pretrain_epochs} epochs")
        _pretrain(config, role, model, task, network, public)
        network.save_pretrained(made)
        network = _base_model(config, role, model, dtype, made)[0].to(device)  # the bits that a resumed run will have
    tuned = add_adapter(
        network,
        **dict(model.adapter),
        seed=derive_seed(config.seed, "adapter", role),
        causal_lm=hasattr(network, "lm_head") or network.can_generate(),
        base_name=place,
    )
    fuse(tuned)
    return tuned


def _base_model(config: RunConfig, role: str, model: ModelConfig, dtype: torch.dtype, made: Path) -> tuple[Any, str]:
    """The base network and the place it can be loaded from later."""
    if model.source in VISION_MODELS:
        if made.is_dir():
            return AutoModelForImageClassification.from_pretrained(made, dtype=dtype), str(made)
        torch.manual_seed(derive_seed(config.seed, "base", role))
        network = cast(nn.Module, ViTForImageClassification(vision_config(model.source)))
        return network.to(dtype), str(made)
    place = str(made) if made.is_dir() else base_directory(model.source, model.layers)
    return load_causal_lm(place, dtype, model.attention, resolve_device(config.device).type), place


def slm_layers(config: RunConfig, llm: nn.Module) -> list[int]:
    """Index in the LLM of every layer of the SLM, which was cut from it.

    Raises:
        UserError: both were made at random instead, each by itself.
    """
    if config.slm.source in VISION_MODELS:
        raise UserError(
            f"server.layer_transfer {config.server.layer_transfer:g}: {config.slm.source} is made with random weights, so an "
            "SLM of it is not cut from the LLM. Set server.layer_transfer: 0."
        )
    layers = cast(Any, llm).config.num_hidden_layers
    return even_layers(layers, config.slm.layers or layers)


def vision_config(source: str) -> ViTConfig:
    """The configuration of an image classifier for 8 x 8 grey images of ten classes."""
    return ViTConfig(**VISION_SHAPE, **VISION_MODELS[source])  # pyright: ignore[reportArgumentType]


def _pretrain(
    config: RunConfig, role: str, model: ModelConfig, task: Task, network: nn.Module, public: Sequence[Any]
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
