"""Rules that refuse combinations with keys that make a federation robust: aggregation, bounds, losses and the gate."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedcollm.config.choices import AGGREGATIONS
from fedcollm.config.federation import FederationConfig

if TYPE_CHECKING:
    from fedcollm.config.run import RunConfig


def faulty_clients(federation: FederationConfig, asked: int) -> Iterator[str]:
    """Yield a message if the aggregation rule can't bear `faulty` clients among so many.

    Args:
        federation: the section that names both.
        asked: the number of clients that a round samples; 0 if it is not known yet.
    """
    name, faulty, least = federation.aggregation, federation.faulty, federation.least_updates
    if not asked or asked >= least:
        return
    borne = max((f for f in range(faulty) if AGGREGATIONS[name].least(f) <= asked), default=None)
    lower = "set federation.aggregation: mean" if borne is None else f"set federation.faulty: {borne}"
    yield (
        f"federation.aggregation {name} bears federation.faulty {faulty} only among at least {least} clients, and a "
        f"round has {asked}. Raise task.clients or federation.fraction, choose another rule, or {lower}"
    )


def bounds(config: "RunConfig") -> Iterator[str]:
    """Yield what bounds on updates, and the server's own labelled examples, can't be combined with."""
    federation = config.federation
    if federation.clip_norm is not None and federation.privacy is not None and federation.privacy.level == "client":
        yield (
            f"federation.clip_norm {federation.clip_norm:g} has no effect with federation.privacy of level client, "
            "which clips each update to federation.privacy.clip. Set federation.clip_norm: null"
        )
    if (federation.aggregation == "held_out") != (config.client.held_out > 0):
        yield (
            f"client.held_out {config.client.held_out:g} does not go with federation.aggregation "
            f"{federation.aggregation}: clients hold examples out exactly if they are weighted by their scores on "
            "them. Set client.held_out: 0.2 with federation.aggregation: held_out, or client.held_out: 0 without it"
        )
    if federation.max_drop is not None and not config.task.public_size:
        yield (
            f"federation.max_drop {federation.max_drop:g} needs labelled public examples to check the clients' mean "
            "on, but task.public_size is 0. Raise it, or set federation.max_drop: null"
        )
    if AGGREGATIONS[federation.aggregation].reference and not config.task.public_size:
        yield (
            f"federation.aggregation {federation.aggregation} compares updates with one that the server trains on "
            "labelled public examples, but task.public_size is 0. Raise it, or choose another federation.aggregation"
        )


def robust_losses(config: "RunConfig") -> Iterator[str]:
    """Yield what a loss of the clients other than plain cross-entropy can't be combined with."""
    if config.client.has_plain_loss or config.control is not None or config.federation.participants == []:
        return
    key, value, instead = config.client.changed_loss
    privacy = config.federation.privacy
    yield from _no_effect(config)
    if privacy is not None and privacy.level == "example":
        yield (
            f"federation.privacy: level example trains with DP-SGD, whose loss is the cross-entropy, and {key} is "
            f"{value}. Set {key}: {instead}, or level: client"
        )
    if config.task.has_boxes:
        yield (
            f"{key} {value} needs a cross-entropy over classes or tokens, and detection has a loss of its own. "
            f"Set {key}: {instead}"
        )


def _no_effect(config: "RunConfig") -> Iterator[str]:
    """Yield settings of the clients' loss with which it does not do what they say."""
    client = config.client
    trim, size = client.loss_trim, client.batch_size
    if client.loss == "symmetric" and not any(client.loss_weights):
        yield "client.loss_weights [0, 0] leave no loss to train on. Set one of them above 0"
    if trim and client.at_once < size:
        yield (
            f"client.loss_trim {trim:g} leaves out rows of a whole batch, and client.micro_batch_size {client.at_once} "
            "computes a batch in parts. Set client.micro_batch_size: null, and for less memory lower client.batch_size "
            "and raise client.gradient_accumulation"
        )
    if trim and not config.task.is_text and int(trim * size) == 0:
        yield (
            f"client.loss_trim {trim:g} of the {size} labels of a batch (client.batch_size) is less than one label, so "
            "that none is left out. Raise one of the two, or set client.loss_trim: 0"
        )


def gate(config: "RunConfig") -> Iterator[str]:
    """Yield what a gate of the distillation can't be combined with."""
    key, value = "server.distillation.gate", config.server.distillation.gate
    if value == "none" or not config.server.epochs or config.control is not None:
        return
    if (why := config.task.no_choices) is not None:
        yield f"{key} {value} needs choices, but {why} have none. Set {key}: none"
    if not config.task.public_size:
        yield (
            f"{key} {value} measures reliability on labelled public examples, and task.public_size is 0. Raise it, or "
            f"set {key}: none"
        )
