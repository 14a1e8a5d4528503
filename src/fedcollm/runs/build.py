"""From a configuration to models, data, clients and a server: the one place where they are put together."""

import functools
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedcollm.config import RunConfig, asked_clients
from fedcollm.data.catalogue import build_modality, load_pool
from fedcollm.data.partition import split as split_pool
from fedcollm.errors import RefusalError, UserError
from fedcollm.federation.client import Client
from fedcollm.federation.secagg.aggregator import SecureSettings
from fedcollm.federation.secagg.client import SecureClient
from fedcollm.federation.secagg.fixed_point import FixedPoint
from fedcollm.federation.secagg.noise import check_grid, private_fixed_point
from fedcollm.federation.server import Server, Transport
from fedcollm.federation.server_optimizers import ServerOptimizer
from fedcollm.federation.upload_format import UploadFormat
from fedcollm.messages import Adapter, Session, default_threshold
from fedcollm.modalities.base import Pool, Split, Task
from fedcollm.modalities.text.cross_tokenizer import TokenizerBridge
from fedcollm.models.adapters import parameter_counts, save_adapter
from fedcollm.privacy.accounting import ClientPrivacy, ExamplePrivacy, Privacy
from fedcollm.progress import say
from fedcollm.runs.build_models import build_model, set_matmul_precision
from fedcollm.runs.directory import writing
from fedcollm.runs.sharing import remembering
from fedcollm.transports.local import LocalTransport


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


@dataclass(frozen=True)
class Remote:
    """Clients elsewhere.

    Attributes:
        transport: the way to them.
        run: identity of the run, as they know it.
        roster: id to public signing key.
    """

    transport: Transport
    run: str
    roster: Mapping[str, Ed25519PublicKey] = field(repr=False)


def build_federation(
    config: RunConfig,
    base: Path,
    task: Task | None = None,
    pool: Pool | None = None,
    remote: Remote | None = None,
    shared: Path | None = None,
    personal: Path | None = None,
) -> Federation:
    """Load data and models and connect the clients.

    Args:
        config: everything that the run depends on.
        base: directory for base models that the run makes itself (`pretrain_epochs`).
        task: the user's own task, instead of `config.task.name`.
        pool: the user's own data.
        remote: the clients are elsewhere; by default they are in this process.
        shared: directory of what several runs have in common.
        personal: directory for adapters that clients in this process keep for themselves.

    Raises:
        UserError: data, models or options don't fit.
    """
    say(f"loading the data of {config.task.name}")
    pool = pool or load_pool(config.task, config.seed)
    split = split_pool(pool, config.task, config.seed, private=remote is None)
    across = config.server.distillation.across_tokenizers
    modality = task or build_modality(config.task, config.slm, config.llm, across)
    task, bridge = modality.of("slm"), modality if isinstance(modality, TokenizerBridge) else None
    llm_task = bridge.llm if bridge else task
    say(f"loading {config.slm.source}" + (f" and {config.llm.source}" if config.server.epochs else ""))
    set_matmul_precision(config)
    slm = build_model(config, "slm", config.slm, task, split.public, base)
    llm = build_model(config, "llm", config.llm, llm_task, split.public, base) if config.server.epochs else None
    privacy = build_privacy(config)
    run = remote.run if remote else f"{config.name}/{config.seed}"
    if remote is None:
        transport, secure = _in_this_process(config, run, task, slm, split, personal, shared)
    else:
        transport = remote.transport
        secure = secured(config, remote.roster, parameter_counts(slm)[0])
    server = _server(config, run, task, slm, llm, split, transport, secure, bridge)
    models = server.models()
    counts = {role: parameter_counts(model) for role, model in models.items()}
    parameters = {role: {"adapter": trainable, "base": frozen} for role, (trainable, frozen) in counts.items()}
    dtypes = {role: str(next(p for p in m.parameters() if not p.requires_grad).dtype)[6:] for role, m in models.items()}
    return Federation(server, task, split, parameters, dtypes, privacy if transport.clients() else None)


def build_client(
    config: RunConfig,
    run: str,
    name: str,
    task: Task,
    slm: peft.PeftModel,
    examples: Sequence[Any],
    test: Sequence[Any],
    spent: MutableMapping[str, int],
    ids: Sequence[str],
    own: Path | None = None,
) -> Client:
    """One client of a run, here or at its owner's.

    `spent` counts the rounds that it spent privacy on, `ids` are those of all clients in the federation's order, and
    `own` is the directory for the adapter that it keeps, where `client.personal` says so.
    """
    store = functools.partial(_store, slm, own) if config.client.personal and own else None
    return Client(
        name,
        task,
        slm,
        examples,
        test,
        config.client.epochs,
        config.client.batch_size,
        config.client.learning_rate,
        config.evaluation.batch_size,
        config.seed,
        run,
        build_privacy(config),
        config.federation.rounds,
        spent,
        config.client.proximal,
        config.client.max_grad_norm,
        build_uploads(config, ids)[name],
        store,
    )


def _store(slm: peft.PeftModel, directory: Path, adapter: Adapter) -> None:
    """Put a client's own adapter away, in PEFT's format."""
    with writing(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        save_adapter(slm, adapter, directory)


def build_uploads(config: RunConfig, ids: Sequence[str]) -> dict[str, UploadFormat]:
    """Client id to the form that its adapter travels in; ids are of all clients of the federation, in its order."""
    name = config.federation.upload
    dtype = None if name == "float32" else getattr(torch, name)
    return {client: UploadFormat(dtype, config.client.rank(k)) for k, client in enumerate(ids)}


def _server(
    config: RunConfig,
    run: str,
    task: Task,
    slm: peft.PeftModel,
    llm: peft.PeftModel | None,
    split: Split,
    transport: Transport,
    secure: SecureSettings | None,
    bridge: TokenizerBridge | None,
) -> Server:
    distillation, clients = config.server.distillation, transport.clients()
    return Server(
        task=task,
        slm=slm,
        llm=llm,
        transport=transport,
        bridge=bridge,
        public=split.public,
        test=split.test,
        fraction=config.federation.fraction,
        uniform=config.federation.aggregation == "uniform",
        product=config.federation.aggregation == "product",
        secure=secure,
        simulated_encoding=fixed_point(config, len(clients))
        if config.federation.secure_aggregation.simulate_quantization and clients
        else None,
        minimum=config.federation.min_clients,
        private=config.federation.privacy is not None,
        max_update_norm=config.federation.max_update_norm,
        uploads=build_uploads(config, clients),
        epochs=config.server.epochs,
        batch_size=config.server.batch_size,
        learning_rate=config.server.learning_rate,
        max_grad_norm=config.server.max_grad_norm,
        weight=distillation.weight,
        llm_weight=distillation.llm_weight,
        temperature=distillation.temperature,
        kind=distillation.divergence,
        teach_where_better=distillation.teach_where_better,
        ramp=distillation.warmup_rounds,
        step=ServerOptimizer(**dict(config.federation.server_optimizer)),
        layer_transfer=config.server.layer_transfer,
        kept=task.slm_layers(config.slm, llm) if llm and config.server.layer_transfer else (),
        evaluation_batch_size=config.evaluation.batch_size,
        seed=config.seed,
        run=run,
    )


def build_privacy(config: RunConfig) -> Privacy | None:
    """What the clients' updates hide."""
    section = config.federation.privacy
    if section is None:
        return None
    numbers = section.clip, section.noise_multiplier, section.delta
    if section.level == "client" or section.sampling_rate is None:
        return ClientPrivacy(*numbers)
    return ExamplePrivacy(*numbers, section.sampling_rate, round(config.client.epochs / section.sampling_rate))


def _in_this_process(
    config: RunConfig,
    run: str,
    task: Task,
    slm: peft.PeftModel,
    split: Split,
    personal: Path | None,
    shared: Path | None,
) -> tuple[Transport, SecureSettings | None]:
    """All clients, on the server's own copy of the base SLM; under secure aggregation each with its own signing key."""
    parts = _participating(split.private, config.federation.participants)
    clients = {
        name: build_client(
            config, run, name, task, slm, examples, split.test, {}, list(parts), personal / name if personal else None
        )
        for name, examples in parts.items()
    }
    keys = {name: Ed25519PrivateKey.generate() for name in clients}
    roster = {name: key.public_key() for name, key in keys.items()}
    settings = secured(config, roster, parameter_counts(slm)[0])
    if settings is None:
        transport = LocalTransport(clients)
        if shared is None or config.federation.privacy:  # its noise is new every time
            return transport, None
        return remembering(config, clients, transport, shared), None
    members = {name: secure_client(config, client, settings, keys[name], {}) for name, client in clients.items()}
    return LocalTransport(members), settings


def _participating(private: Mapping[str, list[Any]], wanted: list[str] | None) -> dict[str, list[Any]]:
    """The private parts of the clients that take part."""
    unknown = sorted(set(wanted or []) - private.keys())
    if unknown:
        raise UserError(f"federation.participants: no client {unknown[0]!r}; there are {', '.join(private)}.")
    return {name: examples for name, examples in private.items() if wanted is None or name in wanted}


def secured(config: RunConfig, roster: Mapping[str, Ed25519PublicKey], parameters: int = 0) -> SecureSettings | None:
    """What the parties of a federation agree on; None without secure aggregation, or without clients.

    Args:
        config: of the run.
        roster: id to public signing key.
        parameters: of the SLM's adapter; 0: not known yet, and what depends on it is not checked.

    Raises:
        UserError: a threshold that no client would accept, or sums or noise that don't fit the fixed point.
    """
    if not (config.federation.secure_aggregation.enabled and roster):  # without clients there is nothing to mask
        return None
    threshold, asked = (
        config.federation.secure_aggregation.threshold,
        asked_clients(len(roster), config.federation.fraction),
    )
    try:
        Session.fresh(config.name, 0, list(roster)[:asked], threshold).check()
    except RefusalError as error:
        raise UserError(f"federation.secure_aggregation: {error}") from error
    uniform = config.federation.aggregation == "uniform"
    encoding, privacy = fixed_point(config, len(roster)), build_privacy(config)
    if isinstance(privacy, ClientPrivacy) and parameters:
        check_grid(encoding, privacy, asked, threshold or default_threshold(asked), parameters)
    return SecureSettings(encoding, roster, threshold, uniform, privacy)


def secure_client(
    config: RunConfig,
    client: Client,
    settings: SecureSettings,
    key: Ed25519PrivateKey,
    opened: MutableMapping[str, list[str]],
) -> SecureClient:
    """A client under secure aggregation; `opened` holds the rounds that it has helped to open."""
    asked = asked_clients(len(settings.roster), config.federation.fraction)
    return SecureClient(client, asked, settings.encoding, settings.uniform, key, settings.roster, opened)


def fixed_point(config: RunConfig, clients: int) -> FixedPoint:
    """The encoding of secure aggregation.

    Raises:
        UserError: so large a federation would round changes too coarsely.
    """
    privacy = build_privacy(config)
    if isinstance(privacy, ClientPrivacy) and clients < 2**16:
        return private_fixed_point(clients, privacy)
    masking = config.federation.secure_aggregation
    weight = 1 if config.federation.aggregation == "uniform" else masking.max_weight
    encoding = FixedPoint(clients, weight, masking.value_range)
    if clients >= 2**16 or encoding.fraction_bits < 4:
        raise UserError(
            f"federation.secure_aggregation: sums of {clients} clients with up to {weight} examples each and changes up to "
            f"{masking.value_range:g} don't fit 32 bits with enough precision. Lower max_weight or value_range, "
            "or set federation.aggregation: uniform."
        )
    return encoding
