"""Build a client, in this process or on its owner's machine, and the settings that all parties agree on."""

import functools
import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from torch import nn

from fedcollm.config import AskedStatistics, RunConfig, asked_clients
from fedcollm.config.augmentation import with_kinds
from fedcollm.data.audit.profiles import check_library, kind_of
from fedcollm.data.augmentation.batches import check as check_augmentation
from fedcollm.data.client_files import client_form
from fedcollm.data.templates import Template
from fedcollm.errors import RefusalError, UserError
from fedcollm.federation import held_out, statistics
from fedcollm.federation.answered import LastAnswer
from fedcollm.federation.client import Agreement, Client
from fedcollm.federation.download_format import download_format
from fedcollm.federation.limits import Limits
from fedcollm.federation.operator import Operator
from fedcollm.federation.quantization import BITS, WORD
from fedcollm.federation.secagg.client import SecureClient
from fedcollm.federation.secagg.fixed_point import FixedPoint, check_weight
from fedcollm.federation.secagg.noise import check_grid, private_fixed_point
from fedcollm.federation.secagg.settings import SecureSettings, smallest_sum
from fedcollm.federation.upload_format import UploadFormat
from fedcollm.messages import Adapter, Session, default_threshold
from fedcollm.modalities.base import Modality
from fedcollm.models.adapters import read_adapter, save_adapter
from fedcollm.privacy.accounting import ClientPrivacy, ExamplePrivacy, Privacy
from fedcollm.progress import say
from fedcollm.seeding import RunIdentity
from fedcollm.storage import make_directory, writing
from fedcollm.training.losses import check_loss_fits
from fedcollm.training.screening import build_screen

if TYPE_CHECKING:
    import peft

_LABELS = "server.pseudo_labels"


def _ignore(line: str) -> None:
    """Do nothing with a line."""


@dataclass(frozen=True)
class ClientData:
    """The model and the data of one client.

    Attributes:
        modality: the modality that reads the examples.
        slm: base SLM with an adapter.
        examples: D_k, the client's private examples.
        test: examples that the client scores its tuned SLM on.
        own: directory for the adapter that the client keeps (`client.personal`); None if it keeps none.
        spent: what the client has answered and spent, as in `Client`.
        replaces: whether an adapter in `own` is replaced, as in a simulation that goes on for more rounds.
        journal: writes one line about a failure, for the client's operator only.
        start: θ₀, the adapter that the SLM was built with; empty if the SLM still has it.
    """

    modality: Modality
    slm: "peft.PeftModel" = field(repr=False)
    examples: Sequence[Any] = field(repr=False)
    test: Sequence[Any] = field(repr=False)
    own: Path | None = None
    spent: MutableMapping[str, int | str] = field(default_factory=dict[str, int | str], repr=False)
    replaces: bool = False
    journal: Callable[[str], None] = field(default=_ignore, repr=False)
    start: Adapter = field(default_factory=dict[str, torch.Tensor], repr=False)


def build_client(config: RunConfig, identity: RunIdentity, name: str, data: ClientData, ids: Sequence[str]) -> Client:
    """Build one client of a run.

    Args:
        config: the run's configuration.
        identity: the run's identity.
        name: the client's id.
        data: the client's model and data.
        ids: ids of all clients, in the order of the federation.

    Raises:
        RangeError: the client has more examples than secure aggregation was set up for.
        UserError: the modality can't be augmented, or has a loss of its own while `client.loss` or `client.loss_trim`
            asks for another one.
    """
    federation, augmentation = config.federation, with_kinds(config.client.augmentation, config.task)
    if config.control is None:
        check_loss_fits(data.modality, config.client)
    check_augmentation(data.modality, augmentation)
    secure, level = federation.secure_aggregation, federation.privacy and federation.privacy.level
    if (secure.enabled or secure.simulate_quantization) and level != "client" and federation.weighted:
        check_weight(len(data.examples), federation.secure_aggregation.max_weight)
    examples, apart = held_out.split(data.examples, config.client.held_out, name)
    return Client(
        id=name,
        modality=data.modality,
        slm=data.slm,
        examples=examples,
        test=data.test,
        settings=config.client.model_copy(update={"augmentation": augmentation}),
        evaluation=config.evaluation,
        agreement=Agreement(
            identity=identity,
            rounds=config.federation.rounds,
            privacy=build_privacy(config),
            upload=build_uploads(config, ids)[name],
            download=download_format(federation.download, data.start or read_adapter(data.slm)),
            statistics=_agreed_statistics(config, data.examples),
            trains=config.control is None,
            limits=Limits.of(config.federation),
        ),
        spent=data.spent,
        operator=_operator(config, data),
        held_out=apart,
        screen=build_screen(config.task.cleaning, examples, data.modality, config.evaluation.batch_size, config.seed),
    )


def _agreed_statistics(config: RunConfig, examples: Sequence[Any]) -> AskedStatistics:
    """Return the statistics that a client sends, with what the task's template puts into every text.

    Raises:
        UserError: what the sketch of a profile needs is not installed.
    """
    asked = config.statistics
    if not asked.buckets or not examples:
        return asked
    check_library(kind_of(examples[0]))
    try:
        prompt = client_form(config.task).prompt
    except UserError:  # a task of one's own
        prompt = None
    return asked if prompt is None else replace(asked, literals=Template(prompt).literals)


def _operator(config: RunConfig, data: ClientData) -> Operator:
    if not (config.client.personal and data.own):
        return Operator(journal=data.journal)
    return Operator(functools.partial(_store, data.slm, data.own, data.replaces), data.journal)


def _store(slm: "peft.PeftModel", directory: Path, replaces: bool, adapter: Adapter) -> None:
    """Save the adapter that a client keeps for itself, in PEFT's format.

    Raises:
        UserError: there is one already, or it can't be written.
    """
    if directory.exists() and not replaces:
        raise UserError(f"{directory} exists already, and is not replaced. Move it away before the last round.")
    with writing(directory):
        make_directory(directory.parent)
        save_adapter(slm, adapter, directory)


def clean_examples(
    config: RunConfig, name: str, examples: Sequence[Any], modality: Modality, slm: nn.Module
) -> tuple[list[Any], str | None]:
    """Return a client's training examples as `task.cleaning` leaves them, and what was done in a sentence, if anything.

    Args:
        config: the run's configuration.
        name: the client's id.
        examples: the client's training examples.
        modality: the modality of the SLM.
        slm: the SLM, which may judge labels.

    Raises:
        UserError: names the client; the examples can't be cleaned, or none would be left.
    """
    settings = config.task.cleaning
    if settings is None:
        return list(examples), None
    from fedcollm.data.cleaning import cleaned

    say(f"cleaning the data of client {name}")
    try:
        found = cleaned(examples, settings, modality, slm, config.seed)
    except UserError as error:
        raise UserError(f"client {name}: {error}") from error
    return found.examples, found.note(name)


def check_statistics(config: RunConfig, modality: Modality, example: Any) -> None:
    """Check, before anything is asked of clients, that a modality has what `control` or `server.pseudo_labels` needs.

    Args:
        config: the run's configuration.
        modality: the modality, which may be the user's own.
        example: one example of the task.

    Raises:
        UserError: names the key, and all that is missing.
    """
    labels = None if config.control is not None else config.server.pseudo_labels
    if config.control is None and labels is None:
        return
    key, instead = ("control", "leave out control") if labels is None else (_LABELS, f"set {_LABELS}: null")
    asks = labels is None or labels.asks_clients
    missing = ["evidence"] if asks and type(modality.of("slm")).evidence is Modality.evidence else []
    roles = [role for role in ("slm", "llm") if labels is not None and role in labels.teachers]
    if any(type(modality.of(role)).probabilities is Modality.probabilities for role in roles):
        missing.append("probabilities")
    missing = [f"{type(modality).__name__}.{name}" for name in missing]
    if labels is not None and not hasattr(example, "with_answer"):
        missing.append(f"{type(example).__name__}.with_answer")
    if missing:
        raise UserError(f"{key} needs {', '.join(missing)}, which this modality lacks. Define them, or {instead}.")


def broadcast_form(config: RunConfig, modality: Modality, slm: nn.Module, examples: Sequence[Any]) -> Adapter:
    """Return tensors of the shapes and dtypes that clients are sent: the adapter, the statistics, or both in turn.

    Args:
        config: the run's configuration.
        modality: the modality of the SLM.
        slm: the SLM.
        examples: examples of the task, at least one.
    """
    adapter = read_adapter(slm) if config.control is None else {}
    if not config.statistics:
        return adapter
    return adapter | statistics.blank(modality, examples, config.statistics, slm)


def build_uploads(config: RunConfig, ids: Sequence[str]) -> dict[str, UploadFormat]:
    """Return the format in which each client sends its adapter, by client id.

    Args:
        config: the run's configuration.
        ids: ids of all clients, in the order of the federation.
    """
    name = config.federation.upload
    bits = BITS.get(name)
    dtype = None if name == "float32" or bits else getattr(torch, name)
    return {client: UploadFormat(dtype, config.client.rank(k), bits) for k, client in enumerate(ids)}


def build_privacy(config: RunConfig) -> Privacy | None:
    """Return the privacy guarantee for the clients' updates; None without differential privacy."""
    section = config.federation.privacy
    if section is None:
        return None
    numbers = section.clip, section.noise_multiplier, section.delta
    if section.level == "client" or section.sampling_rate is None:
        return ClientPrivacy(*numbers)
    return ExamplePrivacy(*numbers, section.sampling_rate, round(config.client.epochs / section.sampling_rate))


def secured(config: RunConfig, roster: Mapping[str, Ed25519PublicKey], parameters: int = 0) -> SecureSettings | None:
    """Return the settings of secure aggregation that all parties agree on; None without it, or without clients.

    Args:
        config: the run's configuration.
        roster: client id to public signing key.
        parameters: number of values that a client sends; with 0, it is not known yet, and the noise of client-level
            privacy is not checked.

    Raises:
        UserError: clients would refuse the threshold, since it is unsafe or below what they were promised, or the
            fixed-point encoding can't hold the sums or the noise.
    """
    if not (config.federation.secure_aggregation.enabled and roster):
        return None
    asked, promised = asked_clients(len(roster), config.federation.fraction), smallest_sum(config)
    agreed = config.federation.secure_aggregation.threshold
    threshold = agreed or max(promised, default_threshold(asked))
    if asked < promised and agreed is None:
        raise UserError(
            f"federation.secure_aggregation: each client was promised a sum over at least {promised} clients, and a "
            f"round asks {asked} of the {len(roster)} that are admitted. Admit more clients, or deploy a new run for "
            "fewer."
        )
    try:
        Session.fresh(config.name, 0, list(roster)[:asked], threshold).check()
    except RefusalError as error:
        raise UserError(f"federation.secure_aggregation: {error}") from error
    encoding, privacy = fixed_point(config, len(roster)), build_privacy(config)
    if isinstance(privacy, ClientPrivacy) and parameters:
        check_grid(encoding, privacy, asked, threshold, parameters)
    uniform, norm = not config.federation.weighted, config.federation.longest_update
    return SecureSettings(encoding, roster, agreed, uniform, privacy, norm, promised)


def secure_client(
    config: RunConfig,
    client: Client,
    settings: SecureSettings,
    key: Ed25519PrivateKey,
    opened: MutableMapping[str, list[str]],
    sent: LastAnswer | None = None,
) -> SecureClient:
    """Return a client that takes part in secure aggregation.

    Args:
        config: the run's configuration.
        client: the client that trains.
        settings: the settings that all parties agree on.
        key: the client's private signing key.
        opened: record of the rounds whose sum the client has helped to open; the client adds to it.
        sent: keeps what the client sends in a round; None for nothing.
    """
    asked = asked_clients(len(settings.roster), config.federation.fraction)
    return SecureClient(client, replace(settings, download=client.agreement.download), asked, key, opened, sent)


def fixed_point(config: RunConfig, clients: int) -> FixedPoint:
    """Return the fixed-point encoding of updates for secure aggregation.

    Args:
        config: the run's configuration.
        clients: number of clients in the federation.

    Raises:
        UserError: the sums of this many clients leave too few bits for the fraction of each value.
    """
    privacy = build_privacy(config)
    if isinstance(privacy, ClientPrivacy) and clients < 2**16:
        return private_fixed_point(clients, privacy)
    section = config.federation.secure_aggregation
    weight = section.max_weight if config.federation.weighted else 1
    encoding = _with_range(config, FixedPoint(clients, weight, section.largest_value, section.bits))
    examples = config.task.private_size if config.federation.weighted else 1
    if section.bits < WORD and encoding.most * examples < _LEAST_STEPS * weight:
        raise UserError(
            f"federation.secure_aggregation.bits: in sums of {clients} clients, {section.bits} bits leave "
            f"{encoding.most} steps to the change of a client with max_weight {weight} examples, too few for one with "
            f"{examples} (task.private_size). Set max_weight to the largest number of examples that a client has, "
            "raise bits, or set federation.aggregation: uniform."
        )
    if clients >= 2**16 or encoding.fraction_bits < 4:
        raise UserError(
            f"federation.secure_aggregation: sums of {clients} clients with up to {weight} examples each and changes "
            f"up to {encoding.value_range:g} don't fit 32 bits with enough precision. Lower max_weight or value_range, "
            "or set federation.aggregation: uniform."
        )
    return encoding


#: The fewest steps that few bits must leave to the largest change of a client of average size.
_LEAST_STEPS = 0.25

#: Share of the largest change to which changes are clipped, by the largest integer M that a value becomes: that of the
#: least squared error of a mean of four clients, measured on updates of `icd10` and `digits`. Others are not clipped.
_CLIPPED_AT = {1: 0.5, 2: 0.7, 3: 0.7, 4: 0.7}


def _with_range(config: RunConfig, encoding: FixedPoint) -> FixedPoint:
    """Return an encoding with the largest change of a parameter in a round, unless the configuration says it.

    AdamW moves a parameter by about a learning rate per step, so that a client's number of steps says how far: that of
    the largest client, by `max_weight`, or of one with `task.private_size` examples if all have the same weight.
    """
    section, settings = config.federation.secure_aggregation, config.client
    if section.value_range is not None or section.bits == WORD:
        return encoding
    examples = section.max_weight if config.federation.weighted else config.task.private_size
    steps = settings.epochs * math.ceil(examples / (settings.batch_size * settings.gradient_accumulation))
    share = _CLIPPED_AT.get(encoding.most, 1.25)
    return replace(encoding, value_range=share * settings.learning_rate * steps)
