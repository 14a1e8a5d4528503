"""From a configuration to models, data, clients and a server: the one place where they are put together."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import peft
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from fedcollm.config import ModelConfig, RunConfig, asked_clients
from fedcollm.errors import RefusalError, UserError
from fedcollm.federation.client import Client
from fedcollm.federation.differential_privacy import check_grid, private_fixed_point
from fedcollm.federation.fixed_point import FixedPoint
from fedcollm.federation.secure_client import SecureClient
from fedcollm.federation.secure_round import SecureSettings
from fedcollm.federation.server import Server
from fedcollm.messages import Session, default_threshold
from fedcollm.models import add_adapter, parameter_counts, resolve_device, resolve_dtype
from fedcollm.pretrained import base_directory, load_causal_lm, load_config, load_tokenizer
from fedcollm.privacy import ClientPrivacy, ExamplePrivacy, Privacy
from fedcollm.progress import say
from fedcollm.seeding import derive_seed
from fedcollm.tasks.base import Pool, Split, Task
from fedcollm.tasks.catalogue import TextModelFacts, build_task, load_pool
from fedcollm.tasks.partition import split as split_pool
from fedcollm.training import fit
from fedcollm.transports.local import LocalTransport

#: Common to all of `VISION_MODELS`: 8 x 8 grey images of ten classes.
VISION_SHAPE: Mapping[str, Any] = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}

#: Image classifiers made from a configuration, with random weights: pair them with `warm_up`.
VISION_MODELS: Mapping[str, Mapping[str, int]] = {
    "vit-digits-large": {"hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 192},
    "vit-digits-small": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
}


@dataclass(frozen=True)
class Federation:
    """A run's parts, ready for rounds.

    Attributes:
        server: holds both models; its transport holds the clients.
        task: the modality.
        split: the data.
        parameters: role to {"adapter", "base"} counts.
        dtypes: role to the base's dtype.
        privacy: of the clients, if there are any.
    """

    server: Server
    task: Task
    split: Split
    parameters: dict[str, dict[str, int]]
    dtypes: dict[str, str]
    privacy: Privacy | None = None


def build_federation(config: RunConfig, base: Path, task: Task | None = None, pool: Pool | None = None) -> Federation:
    """Load data and models and connect clients in this process.

    Args:
        config: everything that the run depends on.
        base: directory for base models that the run makes itself (`warm_up`).
        task: the user's own task, instead of `config.task.name`.
        pool: the user's own data.

    Raises:
        UserError: data, models or options don't fit.
    """
    say(f"loading the data of {config.task.name}")
    split = split_pool(pool or load_pool(config.task, config.seed), config.task, config.seed)
    task = task or build_task(config.task.name, lambda: text_models(config))
    say(f"loading {config.slm.source}" + (f" and {config.llm.source}" if config.server.epochs else ""))
    _set_matmul_precision(config)
    slm = build_model(config, "slm", config.slm, task, split, base)
    llm = build_model(config, "llm", config.llm, task, split, base) if config.server.epochs else None
    privacy = build_privacy(config)
    plain = {
        name: Client(
            name,
            task,
            slm,
            examples,
            split.test,
            config.client.epochs,
            config.client.batch_size,
            config.client.learning_rate,
            config.evaluation.batch_size,
            config.seed,
            privacy,
            config.federation.rounds,
        )
        for name, examples in _participating(split.private, config.federation.participants).items()
    }
    masked = config.federation.secure_aggregation and plain  # without clients there is nothing to mask
    clients, secure = _secured(config, plain) if masked else (plain, None)
    distillation = config.server.distillation
    server = Server(
        task=task,
        slm=slm,
        llm=llm,
        transport=LocalTransport(clients),
        public=split.public,
        test=split.test,
        fraction=config.federation.fraction,
        uniform=config.federation.aggregation == "uniform",
        secure=secure,
        private=privacy is not None,
        largest_change=config.federation.largest_change,
        epochs=config.server.epochs,
        batch_size=config.server.batch_size,
        learning_rate=config.server.learning_rate,
        weight=distillation.weight,
        llm_weight=distillation.llm_weight,
        temperature=distillation.temperature,
        kind=distillation.divergence,
        evaluation_batch_size=config.evaluation.batch_size,
        seed=config.seed,
    )
    models = server.models()
    counts = {role: parameter_counts(model) for role, model in models.items()}
    parameters = {role: {"adapter": trainable, "base": frozen} for role, (trainable, frozen) in counts.items()}
    dtypes = {role: str(next(p for p in m.parameters() if not p.requires_grad).dtype)[6:] for role, m in models.items()}
    return Federation(server, task, split, parameters, dtypes, privacy if plain else None)


def build_privacy(config: RunConfig) -> Privacy | None:
    """What the clients' updates hide."""
    section = config.federation.privacy
    if section is None:
        return None
    numbers = section.clip, section.noise_multiplier, section.delta
    if section.level == "client" or section.sampling_rate is None:
        return ClientPrivacy(*numbers)
    return ExamplePrivacy(*numbers, section.sampling_rate, round(config.client.epochs / section.sampling_rate))


def _set_matmul_precision(config: RunConfig) -> None:
    """Let the float32 products of adapters on a bfloat16 base be taken in bfloat16, as the base's are: 2-4 x faster."""
    device = resolve_device(config.device)
    dtypes = {resolve_dtype(model.dtype, device) for model in (config.slm, config.llm)}
    torch.set_float32_matmul_precision("medium" if torch.bfloat16 in dtypes else "highest")


def _participating(private: Mapping[str, list[Any]], wanted: list[str] | None) -> dict[str, list[Any]]:
    """The private parts of the clients that take part."""
    unknown = sorted(set(wanted or []) - private.keys())
    if unknown:
        raise UserError(f"federation.participants: no client {unknown[0]!r}; there are {', '.join(private)}.")
    return {name: examples for name, examples in private.items() if wanted is None or name in wanted}


def _secured(config: RunConfig, clients: Mapping[str, Client]) -> tuple[dict[str, SecureClient], SecureSettings]:
    """Clients of one process under secure aggregation, each with its own signing key, and the server's settings.

    Raises:
        UserError: a threshold that no client would accept, or sums or noise that don't fit the fixed point.
    """
    keys = {name: Ed25519PrivateKey.generate() for name in clients}
    roster = {name: key.public_key() for name, key in keys.items()}
    uniform = config.federation.aggregation == "uniform"
    encoding = fixed_point(config, len(clients))
    run, asked = f"{config.name}/{config.seed}", asked_clients(len(clients), config.federation.fraction)
    threshold = config.federation.masking.threshold
    try:
        Session.fresh(run, 0, list(clients)[:asked], threshold).check()
    except RefusalError as error:
        raise UserError(f"federation.masking: {error}") from error
    if isinstance(privacy := build_privacy(config), ClientPrivacy):
        dimension = parameter_counts(next(iter(clients.values())).slm)[0]
        check_grid(encoding, privacy, asked, threshold or default_threshold(asked), dimension)
    settings = SecureSettings(run, encoding, roster, threshold, uniform, privacy)
    members = {
        name: SecureClient(client, run, asked, encoding, uniform, keys[name], roster)
        for name, client in clients.items()
    }
    return members, settings


def fixed_point(config: RunConfig, clients: int) -> FixedPoint:
    """The encoding of secure aggregation.

    Raises:
        UserError: so large a federation would round changes too coarsely.
    """
    privacy = build_privacy(config)
    if isinstance(privacy, ClientPrivacy) and clients < 2**16:
        return private_fixed_point(clients, privacy)
    masking = config.federation.masking
    weight = 1 if config.federation.aggregation == "uniform" else masking.largest_weight
    encoding = FixedPoint(clients, weight, masking.value_range)
    if clients >= 2**16 or encoding.fraction_bits < 4:
        raise UserError(
            f"federation.masking: sums of {clients} clients with up to {weight} examples each and changes up to "
            f"{masking.value_range:g} don't fit 32 bits with enough precision. Lower largest_weight or value_range, "
            "or set federation.aggregation: uniform."
        )
    return encoding


def text_models(config: RunConfig) -> TextModelFacts:
    """The tokenizer, output space and context length that both roles share.

    Raises:
        UserError: the two roles don't share a tokenizer.
    """
    tokenizer, other = load_tokenizer(config.slm.source), None
    if config.llm.source != config.slm.source:
        other = load_tokenizer(config.llm.source)
    if other is not None and other.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"llm.source {config.llm.source!r} ({len(other)} tokens) and "
            f"slm.source {config.slm.source!r} ({len(tokenizer)} tokens) don't share a tokenizer, "
            "so their outputs can't be compared. Choose two models of one family."
        )
    configs = [load_config(model.source) for model in (config.slm, config.llm)]
    context = min(getattr(c, "max_position_embeddings", 1_000_000) for c in configs)
    return TextModelFacts(tokenizer, min(c.vocab_size for c in configs), context)


def build_model(
    config: RunConfig, role: str, model: ModelConfig, task: Task, split: Split, base: Path
) -> peft.PeftModel:
    """A role's frozen base with its adapter, on its device, in evaluation mode."""
    device = resolve_device(config.device)
    dtype = resolve_dtype(model.dtype, device)
    made = base / role
    network, place = _base_model(config, role, model, dtype, made)
    network.to(device)
    if model.warm_up and not made.is_dir():
        say(f"warming up {role} ({model.source}) on the public part: {model.warm_up} epochs")
        _warm_up(config, role, model, task, network, split)
        network.save_pretrained(made)
        network = _base_model(config, role, model, dtype, made)[0].to(device)  # the bits that a resumed run will have
    adapter = model.adapter
    return add_adapter(
        network,
        kind=adapter.kind,
        rank=adapter.rank,
        alpha=adapter.alpha,
        dropout=adapter.dropout,
        targets=adapter.targets,
        options=adapter.options,
        seed=derive_seed(config.seed, "adapter", role),
        causal_lm=hasattr(network, "lm_head") or network.can_generate(),
        base_name=place,
    )


def _base_model(config: RunConfig, role: str, model: ModelConfig, dtype: torch.dtype, made: Path) -> tuple[Any, str]:
    """The base network and the place it can be loaded from later."""
    if model.source in VISION_MODELS:
        if made.is_dir():
            return AutoModelForImageClassification.from_pretrained(made, dtype=dtype), str(made)
        torch.manual_seed(derive_seed(config.seed, "base", role))
        network = cast(nn.Module, ViTForImageClassification(vision_config(model.source)))
        return network.to(dtype), str(made)
    place = str(made) if made.is_dir() else base_directory(model.source, model.layers)
    return load_causal_lm(place, dtype, model.attention), place


def vision_config(source: str) -> ViTConfig:
    """The configuration of an image classifier for 8 x 8 grey images of ten classes."""
    return ViTConfig(**VISION_SHAPE, **VISION_MODELS[source])  # pyright: ignore[reportArgumentType]


def _warm_up(config: RunConfig, role: str, model: ModelConfig, task: Task, network: nn.Module, split: Split) -> None:
    """Train the whole base on the labelled public part, as pretraining would have."""
    labelled = [example for example in split.public if example.label is not None]
    if not labelled:
        raise UserError(f"{role}.warm_up: {model.warm_up} needs labelled public examples; set task.public_size.")
    fit(
        task,
        network,
        labelled,
        epochs=model.warm_up,
        batch_size=config.server.batch_size,
        learning_rate=config.server.learning_rate,
        seed=derive_seed(config.seed, "warm_up", role),
        where=f"warming up {role}",
    )
