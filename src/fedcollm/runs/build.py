"""Build the models, data, clients and server of a run from its configuration.

This module, `build_clients` and `build_models` take the whole configuration apart. The parts that they build get only
the sections that they need.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedcollm.config import RunConfig
from fedcollm.data.augmentation.batches import notes as augmentation_notes
from fedcollm.data.catalogue import build_modality, load_pool
from fedcollm.data.partition import split as split_pool
from fedcollm.data.pool import Pool, Split
from fedcollm.errors import UserError
from fedcollm.federation.aggregation.base import Aggregator
from fedcollm.federation.aggregation.plain import PlainAggregator
from fedcollm.federation.client import Client
from fedcollm.federation.cohort import Transport
from fedcollm.federation.gate import check_gate
from fedcollm.federation.secagg.aggregator import SecureAggregator, SimulatedQuantization
from fedcollm.federation.server import Server
from fedcollm.modalities.base import Modality
from fedcollm.models.adapters import parameter_counts, read_adapter, resolve_device
from fedcollm.privacy.accounting import Privacy
from fedcollm.progress import say
from fedcollm.runs.build_checks import checked, own_update
from fedcollm.runs.build_clients import (
    ClientData,
    broadcast_form,
    build_client,
    build_privacy,
    build_uploads,
    check_statistics,
    clean_examples,
    fixed_point,
    secure_client,
    secured,
)
from fedcollm.runs.build_models import build_model, build_slm, set_backends
from fedcollm.runs.resolve import resolved
from fedcollm.runs.sharing import with_cache
from fedcollm.runs.shrink import with_shrunk_models
from fedcollm.seeding import RunIdentity
from fedcollm.training.distillation import ModelPair
from fedcollm.transports.local import LocalTransport

#: The file in a run directory that holds the sum of secure aggregation which is being opened.
OPENING = "opening.safetensors"


@dataclass(frozen=True)
class Federation:
    """The parts of a run, ready for its rounds.

    Attributes:
        server: the server, which holds both models and the transport to the clients.
        split: the run's data.
        parameters: role to the number of its adapter's and its base's parameters, {"adapter": ..., "base": ...}.
        dtypes: role to the dtype of its base, such as `bfloat16`.
        privacy: the guarantee for the clients' updates; None without differential privacy or without clients.
        healed: role to the entry of the cache that is its base, for bases that the configuration lets be healed.
        shipped: whether the modality ships with fedcollm, so that it can be built again from the configuration.
    """

    server: Server
    split: Split
    parameters: dict[str, dict[str, int]]
    dtypes: dict[str, str]
    privacy: Privacy | None = None
    healed: Mapping[str, str] = field(default_factory=dict[str, str])
    shipped: bool = True


@dataclass(frozen=True)
class Remote:
    """Clients on other machines.

    Attributes:
        transport: the transport that reaches them.
        run: the run's identity, as the clients know it.
        roster: client id to public signing key.
    """

    transport: Transport
    run: str
    roster: Mapping[str, Ed25519PublicKey] = field(repr=False)


@dataclass(frozen=True)
class Inputs:
    """What a run is given in addition to its configuration.

    Attributes:
        modality: the user's own modality; by default the one of the task that `config.task.name` names.
        pool: the user's own data; by default the data of that task.
        remote: clients on other machines; by default all clients are in this process.
        shared: directory of results that several runs have in common. It saves time and changes no result.
        personal: directory for the adapters that clients in this process keep for themselves.
        accept_changed_data: whether a resumed run goes on although its data or base models are not those of before.
        memory: the memory limit that the configuration was fitted to, for the record: see `Cost.limited`.
        stand_in: returns what takes the place of a client in this process, such as a client of your own class that
            misbehaves in an experiment; by default the client itself.
        private: changes the private examples of each client in this process, by its id, as they are before the client
            cleans them, such as for an experiment with wrong labels; by default they stay as they are.
    """

    modality: Modality | None = None
    pool: Pool | None = None
    remote: Remote | None = None
    shared: Path | None = None
    personal: Path | None = None
    accept_changed_data: bool = False
    memory: Mapping[str, Any] = field(default_factory=dict[str, Any])
    stand_in: Callable[[Client], Client] | None = None
    private: Callable[[str, list[Any]], list[Any]] | None = None


def build_federation(config: RunConfig, base: Path, inputs: Inputs = Inputs()) -> Federation:
    """Load the data and the models, and connect the server to the clients.

    Args:
        config: the run's configuration.
        base: directory for base models that the run pretrains itself (`pretrain_epochs`).
        inputs: what the run is given in addition to its configuration.

    Raises:
        UserError: the data, the models or the options do not fit together.
    """
    _check(inputs)
    resolve_device(config.device)  # before anything is loaded
    given, config = config, with_shrunk_models(config, inputs.modality)
    say(f"loading the data of {config.task.path or config.task.name}")
    pool = inputs.pool or load_pool(config.task, config.seed, private=inputs.remote is None)
    config, _ = resolved(config, pool)
    simulated = inputs.remote is None and bool(pool.train or config.federation.participants != [])
    split = split_pool(pool, config.task, config.seed, private=simulated)
    if inputs.private is not None:
        split = replace(split, private={name: inputs.private(name, own) for name, own in split.private.items()})
    across = config.server.distillation.across_tokenizers
    private = [example for part in split.private.values() for example in part]
    split = replace(split, notes=[*split.notes, *augmentation_notes(config.client.augmentation, private)])
    say("loading the models")  # and the libraries that they need
    modality = inputs.modality or build_modality(config.task, config.slm, config.llm, across)
    for note in split.notes:
        say(f"data: {note}")
    check_statistics(config, modality, split.test[0])
    if config.server.epochs:
        check_gate(config.server.distillation.gate, modality, split.test[0])
    set_backends(config)
    pair = _build_pair(config, modality, split, base)
    split = _cleaned(config, split, pair)
    identity = RunIdentity(inputs.remote.run if inputs.remote else f"{config.name}/{config.seed}", config.seed)
    if inputs.remote is None:
        transport, aggregator = _connect_local(config, identity, pair, split, inputs)
    else:
        transport = inputs.remote.transport
        aggregator = _build_aggregator(config, identity, pair, split, inputs.remote.roster, base.with_name(OPENING))
    return Federation(
        server=_build_server(config, identity, pair, split, transport, checked(config, pair, split, aggregator)),
        split=split,
        parameters=_parameter_counts(pair),
        dtypes=_base_dtypes(pair),
        privacy=build_privacy(config) if transport.clients() else None,
        healed=_healed(given, config),
        shipped=inputs.modality is None,
    )


def _cleaned(config: RunConfig, split: Split, pair: ModelPair) -> Split:
    """Return a split in which each client has cleaned its own examples, as it would on a machine of its own."""
    if config.task.cleaning is None or not split.private:
        return split
    slm = pair.modality.of("slm")
    found = {name: clean_examples(config, name, some, slm, pair.slm) for name, some in split.private.items()}
    notes = [note for _, note in found.values() if note]
    for note in notes:
        say(f"data: {note}")
    private = {name: examples for name, (examples, _) in found.items()}
    return replace(split, private=private, notes=[*split.notes, *notes])


def _healed(given: RunConfig, made: RunConfig) -> dict[str, str]:
    """Return the names of the bases that a configuration let be healed, which are directories in the other one."""
    pairs = {"slm": (given.slm, made.slm), "llm": (given.llm, made.llm)}
    return {role: Path(after.source).name for role, (before, after) in pairs.items() if before.heal and not after.heal}


def _build_pair(config: RunConfig, modality: Modality, split: Split, base: Path) -> ModelPair:
    slm = build_slm(config, modality.of("slm"), split.public, base)
    if not config.server.epochs:
        return ModelPair(modality, slm)
    say(f"loading {config.llm.source}")
    return ModelPair(modality, slm, build_model(config, "llm", modality.of("llm"), split.public, base))


def _parameter_counts(pair: ModelPair) -> dict[str, dict[str, int]]:
    counts = {role: parameter_counts(model) for role, model in pair.models().items()}
    return {role: {"adapter": trained, "base": frozen} for role, (trained, frozen) in counts.items() if frozen}


def _base_dtypes(pair: ModelPair) -> dict[str, str]:
    frozen = {role: [p for p in model.parameters() if not p.requires_grad] for role, model in pair.models().items()}
    return {role: str(base[0].dtype).removeprefix("torch.") for role, base in frozen.items() if base}


def _build_server(
    config: RunConfig,
    identity: RunIdentity,
    pair: ModelPair,
    split: Split,
    transport: Transport,
    aggregator: Aggregator,
) -> Server:
    layers: Sequence[int] = ()
    if pair.llm is not None and config.server.layer_transfer:
        layers = pair.modality.slm_layers(config.slm, pair.llm)
    return Server(
        pair=pair,
        public=split.public,
        test=split.test,
        transport=transport,
        aggregator=aggregator,
        settings=config.server,
        federation=config.federation,
        evaluation=config.evaluation,
        identity=identity,
        slm_layers=layers,
    )


def _build_aggregator(
    config: RunConfig,
    identity: RunIdentity,
    pair: ModelPair,
    split: Split,
    roster: Mapping[str, Ed25519PublicKey],
    journal: Path | None = None,
) -> Aggregator:
    """Return the aggregator that combines the updates of the clients on the roster.

    Args:
        config: the run's configuration.
        identity: the run's identity.
        pair: the models.
        split: the run's data.
        roster: client id to public signing key.
        journal: file for the sum that is being opened.
    """
    form = broadcast_form(config, pair.modality.of("slm"), pair.slm, split.test)
    settings = secured(config, roster, sum(tensor.numel() for tensor in form.values()))
    if settings is not None:
        return SecureAggregator(settings, journal)
    uploads = build_uploads(config, list(roster))
    if config.federation.secure_aggregation.simulate_quantization and roster:
        return SimulatedQuantization(config.federation, uploads, encoding=fixed_point(config, len(roster)))
    return PlainAggregator(config.federation, uploads, own_update(config, identity, pair, split))


def _connect_local(
    config: RunConfig, identity: RunIdentity, pair: ModelPair, split: Split, inputs: Inputs
) -> tuple[Transport, Aggregator]:
    """Build every client in this process, on the server's own copy of the base SLM.

    Under secure aggregation, each client gets a fresh signing key.

    Returns:
        The transport to the clients, and the aggregator of their updates.
    """
    examples = _participating(split.private, config.federation.participants)
    start = read_adapter(pair.slm)
    clients = {
        name: build_client(
            config,
            identity,
            name,
            ClientData(
                modality=pair.modality.of("slm"),
                slm=pair.slm,
                examples=own_examples,
                test=split.test,
                own=inputs.personal and inputs.personal / name,
                replaces=True,
                start=start,
            ),
            list(examples),
        )
        for name, own_examples in examples.items()
    }
    if inputs.stand_in is not None:
        clients = {name: inputs.stand_in(client) for name, client in clients.items()}
    keys = {name: Ed25519PrivateKey.generate() for name in clients}
    roster = {name: key.public_key() for name, key in keys.items()}
    aggregator = _build_aggregator(config, identity, pair, split, roster)
    if isinstance(aggregator, SecureAggregator):
        settings = aggregator.settings
        members = {name: secure_client(config, client, settings, keys[name], {}) for name, client in clients.items()}
        return LocalTransport(members), aggregator
    transport = LocalTransport(clients)
    changed = inputs.stand_in or inputs.private
    fresh = changed or config.federation.privacy or config.control  # fresh noise; statistics are quick
    if inputs.shared is None or fresh:
        return transport, aggregator
    return with_cache(config, clients, transport, inputs.shared), aggregator


def _participating(private: Mapping[str, list[Any]], wanted: list[str] | None) -> dict[str, list[Any]]:
    """Return the private examples of the clients that take part; `wanted` is None if all of them do."""
    unknown = sorted(set(wanted or []) - private.keys())
    if unknown:
        raise UserError(f"federation.participants: no client {unknown[0]!r}; there are {', '.join(private)}.")
    return {name: examples for name, examples in private.items() if wanted is None or name in wanted}


def _check(inputs: Inputs) -> None:
    """Refuse a modality or data of another type than a run takes.

    Raises:
        UserError: says what was given.
    """
    for name, kind in (("modality", Modality), ("pool", Pool)):
        given = getattr(inputs, name)
        if given is not None and not isinstance(given, kind):
            raise UserError(
                f"{name}: {given!r:.80} is no {kind.__name__}. Give an instance of fedcollm.{kind.__name__}."
            )
