"""From a configuration to a client, here or at its owner's, and to what all parties agree on."""

import functools
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedcollm.config import RunConfig, asked_clients
from fedcollm.errors import RefusalError, UserError
from fedcollm.federation.client import Agreement, Client
from fedcollm.federation.secagg.client import SecureClient
from fedcollm.federation.secagg.fixed_point import FixedPoint
from fedcollm.federation.secagg.noise import check_grid, private_fixed_point
from fedcollm.federation.secagg.settings import SecureSettings
from fedcollm.federation.upload_format import UploadFormat
from fedcollm.messages import Adapter, Session, default_threshold
from fedcollm.modalities.base import Modality
from fedcollm.models.adapters import save_adapter
from fedcollm.privacy.accounting import ClientPrivacy, ExamplePrivacy, Privacy
from fedcollm.seeding import RunIdentity
from fedcollm.storage import writing


@dataclass(frozen=True)
class ClientData:
    """What a client brings.

    Attributes:
        modality: reads its examples.
        slm: base SLM with an adapter.
        examples: D_k.
        test: examples to score its tuned SLM on.
        own: directory for the adapter that it keeps, where `client.personal` says so.
        spent: counts the rounds that it spent privacy on.
    """

    modality: Modality
    slm: peft.PeftModel = field(repr=False)
    examples: Sequence[Any] = field(repr=False)
    test: Sequence[Any] = field(repr=False)
    own: Path | None = None
    spent: MutableMapping[str, int] = field(default_factory=dict, repr=False)


def build_client(config: RunConfig, identity: RunIdentity, name: str, data: ClientData, ids: Sequence[str]) -> Client:
    """Build one client of a run.

    Args:
        config: of the run.
        identity: of the run.
        name: the client's id.
        data: what it brings.
        ids: of all clients, in the federation's order.
    """
    store = functools.partial(_store, data.slm, data.own) if config.client.personal and data.own else None
    agreement = Agreement(identity, config.federation.rounds, build_privacy(config), build_uploads(config, ids)[name])
    return Client(
        name,
        data.modality,
        data.slm,
        data.examples,
        data.test,
        config.client,
        config.evaluation,
        agreement,
        data.spent,
        store,
    )


def _store(slm: peft.PeftModel, directory: Path, adapter: Adapter) -> None:
    """Put a client's own adapter away, in PEFT's format."""
    with writing(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        save_adapter(slm, adapter, directory)


def build_uploads(config: RunConfig, ids: Sequence[str]) -> dict[str, UploadFormat]:
    """Return client id to the form that its adapter travels in; ids are of all clients, in the federation's order."""
    name = config.federation.upload
    dtype = None if name == "float32" else getattr(torch, name)
    return {client: UploadFormat(dtype, config.client.rank(k)) for k, client in enumerate(ids)}


def build_privacy(config: RunConfig) -> Privacy | None:
    """Return what the clients' updates hide."""
    section = config.federation.privacy
    if section is None:
        return None
    numbers = section.clip, section.noise_multiplier, section.delta
    if section.level == "client" or section.sampling_rate is None:
        return ClientPrivacy(*numbers)
    return ExamplePrivacy(*numbers, section.sampling_rate, round(config.client.epochs / section.sampling_rate))


def secured(config: RunConfig, roster: Mapping[str, Ed25519PublicKey], parameters: int = 0) -> SecureSettings | None:
    """Return what the parties of a federation agree on; None without secure aggregation, or without clients.

    Args:
        config: of the run.
        roster: id to public signing key.
        parameters: of the SLM's adapter; 0: not known yet, and what depends on it is not checked.

    Raises:
        UserError: a threshold that no client would accept, or sums or noise that don't fit the fixed point.
    """
    if not (config.federation.secure_aggregation.enabled and roster):  # without clients there is nothing to mask
        return None
    threshold = config.federation.secure_aggregation.threshold
    asked = asked_clients(len(roster), config.federation.fraction)
    try:
        Session.fresh(config.name, 0, list(roster)[:asked], threshold).check()
    except RefusalError as error:
        raise UserError(f"federation.secure_aggregation: {error}") from error
    encoding, privacy = fixed_point(config, len(roster)), build_privacy(config)
    if isinstance(privacy, ClientPrivacy) and parameters:
        check_grid(encoding, privacy, asked, threshold or default_threshold(asked), parameters)
    return SecureSettings(encoding, roster, threshold, not config.federation.weighted, privacy)


def secure_client(
    config: RunConfig,
    client: Client,
    settings: SecureSettings,
    key: Ed25519PrivateKey,
    opened: MutableMapping[str, list[str]],
) -> SecureClient:
    """Return a client under secure aggregation; `opened` holds the rounds that it has helped to open."""
    asked = asked_clients(len(settings.roster), config.federation.fraction)
    return SecureClient(client, settings, asked, key, opened)


def fixed_point(config: RunConfig, clients: int) -> FixedPoint:
    """Return the encoding of secure aggregation.

    Raises:
        UserError: so large a federation would round changes too coarsely.
    """
    privacy = build_privacy(config)
    if isinstance(privacy, ClientPrivacy) and clients < 2**16:
        return private_fixed_point(clients, privacy)
    section = config.federation.secure_aggregation
    weight = section.max_weight if config.federation.weighted else 1
    encoding = FixedPoint(clients, weight, section.value_range)
    if clients >= 2**16 or encoding.fraction_bits < 4:
        raise UserError(
            f"federation.secure_aggregation: sums of {clients} clients with up to {weight} examples each and changes "
            f"up to {section.value_range:g} don't fit 32 bits with enough precision. Lower max_weight or value_range, "
            "or set federation.aggregation: uniform."
        )
    return encoding
