"""From a configuration to models, data, clients and a server: the one place that reads the whole of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedcollm.config import RunConfig
from fedcollm.data.catalogue import build_modality, load_pool
from fedcollm.data.partition import split as split_pool
from fedcollm.errors import UserError
from fedcollm.federation.aggregation.base import Aggregator
from fedcollm.federation.aggregation.plain import PlainAggregator
from fedcollm.federation.secagg.aggregator import SecureAggregator, SimulatedQuantization
from fedcollm.federation.server import Server, Transport
from fedcollm.modalities.base import Modality, Pool, Split
from fedcollm.models.adapters import parameter_counts
from fedcollm.privacy.accounting import Privacy
from fedcollm.progress import say
from fedcollm.runs.build_clients import (
    ClientData,
    build_client,
    build_privacy,
    build_uploads,
    fixed_point,
    secure_client,
    secured,
)
from fedcollm.runs.build_models import build_model, set_matmul_precision
from fedcollm.runs.sharing import with_cache
from fedcollm.seeding import RunIdentity
from fedcollm.training.distillation import ModelPair
from fedcollm.transports.local import LocalTransport


@dataclass(frozen=True)
class Federation:
    """A run's parts, ready for rounds.

    Attributes:
        server: holds both models; its transport holds the clients.
        split: the data.
        parameters: role to {"adapter", "base"} counts.
        dtypes: role to the base's dtype.
        privacy: of the clients, if there are any.
    """

    server: Server
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


@dataclass(frozen=True)
class Inputs:
    """What a run is given beside its configuration.

    Attributes:
        modality: the user's own, instead of what `config.task.name` names.
        pool: the user's own data.
        remote: the clients are elsewhere; by default they are in this process.
        shared: directory of what several runs have in common; it changes no result.
        personal: directory for adapters that clients in this process keep for themselves.
    """

    modality: Modality | None = None
    pool: Pool | None = None
    remote: Remote | None = None
    shared: Path | None = None
    personal: Path | None = None


def build_federation(config: RunConfig, base: Path, inputs: Inputs = Inputs()) -> Federation:
    """Load data and models and connect the clients.

    Args:
        config: everything that the run depends on.
        base: directory for base models that the run makes itself (`pretrain_epochs`).
        inputs: what it is given beside it.

    Raises:
        UserError: data, models or options don't fit.
    """
    say(f"loading the data of {config.task.name}")
    pool = inputs.pool or load_pool(config.task, config.seed)
    split = split_pool(pool, config.task, config.seed, private=inputs.remote is None)
    across = config.server.distillation.across_tokenizers
    modality = inputs.modality or build_modality(config.task, config.slm, config.llm, across)
    say(f"loading {config.slm.source}" + (f" and {config.llm.source}" if config.server.epochs else ""))
    set_matmul_precision(config)
    pair = ModelPair(
        modality,
        build_model(config, "slm", modality.of("slm"), split.public, base),
        build_model(config, "llm", modality.of("llm"), split.public, base) if config.server.epochs else None,
    )
    identity = RunIdentity(inputs.remote.run if inputs.remote else f"{config.name}/{config.seed}", config.seed)
    if inputs.remote is None:
        transport, aggregator = _in_this_process(config, identity, pair, split, inputs)
    else:
        transport = inputs.remote.transport
        aggregator = _aggregator(config, pair, inputs.remote.roster)
    server = _server(config, identity, pair, split, transport, aggregator)
    counts = {role: parameter_counts(model) for role, model in pair.models().items()}
    parameters = {role: {"adapter": trainable, "base": frozen} for role, (trainable, frozen) in counts.items()}
    dtypes = {
        role: str(next(p for p in model.parameters() if not p.requires_grad).dtype)[6:]
        for role, model in pair.models().items()
    }
    return Federation(server, split, parameters, dtypes, build_privacy(config) if transport.clients() else None)


def _server(
    config: RunConfig,
    identity: RunIdentity,
    pair: ModelPair,
    split: Split,
    transport: Transport,
    aggregator: Aggregator,
) -> Server:
    layers = ()
    if pair.llm is not None and config.server.layer_transfer:
        layers = pair.modality.slm_layers(config.slm, pair.llm)
    return Server(
        pair,
        split.public,
        split.test,
        transport,
        aggregator,
        config.server,
        config.federation,
        config.evaluation,
        identity,
        layers,
    )


def _aggregator(config: RunConfig, pair: ModelPair, roster: Mapping[str, Ed25519PublicKey]) -> Aggregator:
    """Return what combines the updates of the clients of a roster."""
    settings = secured(config, roster, parameter_counts(pair.slm)[0])
    if settings is not None:
        return SecureAggregator(settings)
    uploads = build_uploads(config, list(roster))
    if config.federation.secure_aggregation.simulate_quantization and roster:
        return SimulatedQuantization(config.federation, uploads, encoding=fixed_point(config, len(roster)))
    return PlainAggregator(config.federation, uploads)


def _in_this_process(
    config: RunConfig, identity: RunIdentity, pair: ModelPair, split: Split, inputs: Inputs
) -> tuple[Transport, Aggregator]:
    """Return all clients, on the server's own copy of the base SLM; securely, each with its own signing key."""
    parts = _participating(split.private, config.federation.participants)
    modality = pair.modality.of("slm")
    clients = {
        name: build_client(
            config,
            identity,
            name,
            ClientData(modality, pair.slm, examples, split.test, inputs.personal and inputs.personal / name),
            list(parts),
        )
        for name, examples in parts.items()
    }
    keys = {name: Ed25519PrivateKey.generate() for name in clients}
    aggregator = _aggregator(config, pair, {name: key.public_key() for name, key in keys.items()})
    if isinstance(aggregator, SecureAggregator):
        settings = aggregator.settings
        members = {name: secure_client(config, client, settings, keys[name], {}) for name, client in clients.items()}
        return LocalTransport(members), aggregator
    transport = LocalTransport(clients)
    if inputs.shared is None or config.federation.privacy:  # its noise is new every time
        return transport, aggregator
    return with_cache(config, clients, transport, inputs.shared), aggregator


def _participating(private: Mapping[str, list[Any]], wanted: list[str] | None) -> dict[str, list[Any]]:
    """Return the private parts of the clients that take part."""
    unknown = sorted(set(wanted or []) - private.keys())
    if unknown:
        raise UserError(f"federation.participants: no client {unknown[0]!r}; there are {', '.join(private)}.")
    return {name: examples for name, examples in private.items() if wanted is None or name in wanted}
