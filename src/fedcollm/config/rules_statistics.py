"""Rules that refuse combinations with the keys that ask clients for statistics: `control`, pseudo-labels, `profile`."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedcollm.config.choices import AGGREGATIONS
from fedcollm.config.federation import FederationConfig

if TYPE_CHECKING:
    from fedcollm.config.run import RunConfig


def control(config: "RunConfig") -> Iterator[str]:
    """Yield what a run that trains nothing can't be combined with."""
    federation = config.federation
    if config.control is None:
        return
    for key, value, needed, reason in (
        ("server.epochs", config.server.epochs, 0, "trains nothing"),
        ("federation.rounds", federation.rounds, 1, "asks the clients once"),
        ("federation.upload", federation.upload, "float32", "needs sums without rounding"),
        ("client.ranks", config.client.ranks, None, "has no adapter"),
        ("client.personal", config.client.personal, False, "trains nothing"),
        ("federation.fraction", federation.fraction, 1.0, "asks every client"),
    ):
        if value != needed:
            given, wanted = (json.dumps(one).strip('"') for one in (value, needed))
            yield f"control {reason}, so {key} can't be {given}. Set {key}: {wanted}"
    if (why := config.task.no_choices) is not None:
        yield (
            f"control needs choices, but {why} have no solution in closed form. Leave out control, and the methods "
            "majority and closed_form"
        )
    if federation.participants == [] and not config.task.public_size:
        yield "control needs labelled examples. Set federation.participants: null, or task.public_size"
    yield from _control_sums(federation)


def _control_sums(federation: FederationConfig) -> Iterator[str]:
    """Yield what keeps the clients' statistics from becoming one sum of all examples."""
    secure, privacy = federation.secure_aggregation, federation.privacy
    if federation.aggregation not in ("mean", "uniform"):
        yield (
            f"control is solved from means of the clients' statistics, which federation.aggregation "
            f"{federation.aggregation} does not give. Set federation.aggregation: mean or uniform"
        )
    if privacy is not None and privacy.level == "example":
        yield (
            "control can't be combined with federation.privacy of level example, whose noise is part of DP-SGD, and a "
            "control has no training steps. Set federation.privacy.level: client, or federation.privacy: null"
        )
    if secure.excludes_statistics and privacy is None:
        yield (
            f"control sends numbers from -1 to 1, which federation.secure_aggregation.value_range "
            f"{secure.largest_value:g} excludes. Set federation.secure_aggregation.value_range: 1"
        )


def _is_robust(federation: FederationConfig) -> bool:
    """Return whether the aggregation rule gives anything but a mean."""
    choice = AGGREGATIONS[federation.aggregation]
    return choice.bears is not None or choice.reference or federation.aggregation == "held_out"


def pseudo_labels(config: "RunConfig") -> Iterator[str]:
    """Yield what labels for the public examples, from the clients' statistics, can't be combined with."""
    key, labels = "server.pseudo_labels", config.server.pseudo_labels
    if labels is None:
        return
    for name, value, why in (
        ("task.unlabelled_size", config.task.unlabelled_size, "there are no unlabelled public examples"),
        ("server.unlabelled_per_round", config.server.unlabelled_per_round, "no round uses an unlabelled example"),
        ("server.epochs", config.server.epochs, "nothing is trained on them"),
    ):
        if value == 0:
            yield f"{key} labels unlabelled public examples, but {name} is 0: {why}. Raise {name}, or set {key}: null"
    if (why := config.task.no_choices) is not None:
        yield f"{key} needs choices, but {why} have none. Set {key}: null"
    if labels.asks_clients:
        yield from _sums(config, f"{key}: null")


def profile(config: "RunConfig") -> Iterator[str]:
    """Yield what a profile of the clients' data can't be combined with."""
    federation, off = config.federation, "federation.profile: false"
    if not federation.profile:
        return
    yield from _sums(config, off)
    if not federation.weighted and federation.privacy is None and not _is_robust(federation):
        yield (
            f"federation.profile counts examples, and federation.aggregation {federation.aggregation} weights all "
            f"clients alike. Set federation.aggregation: mean, or {off}"
        )


def _sums(config: "RunConfig", off: str) -> Iterator[str]:
    """Yield what keeps the clients' statistics from being summed beside their adapters.

    Args:
        config: the configuration.
        off: the key that asks for statistics, with the value that does not.
    """
    federation, key = config.federation, off.partition(":")[0]
    if federation.participants == []:
        yield f"{key} needs statistics of clients, and there are none. Set federation.participants: null, or {off}"
    for other, value, needed, reason in (
        ("federation.privacy", federation.privacy is not None, False, "clients' statistics would need noise too"),
        ("federation.upload", federation.upload, "float32", "statistics would be rounded"),
        ("client.ranks", config.client.ranks, None, "statistics have no rank"),
        ("federation.aggregation", _is_robust(federation), False, "it gives no sum of statistics"),
    ):
        if value != needed:
            yield f"{key} can't be combined with {other}: {reason}. Set {off}"
    secure, threshold = federation.secure_aggregation, federation.secure_aggregation.threshold
    clients = config.task.clients if federation.participants is None else len(federation.participants)
    if (
        secure.enabled
        and federation.fraction < 1
        and threshold is not None
        and clients
        and 3 * threshold <= 2 * clients
    ):
        yield (
            f"{key} asks all {clients} clients in one session, not the share federation.fraction "
            f"{federation.fraction:g}, and federation.secure_aggregation.threshold {threshold} is not more than 2/3 of "
            "them. Set federation.secure_aggregation.threshold: null"
        )
    if secure.excludes_statistics:
        yield (
            f"{key} sends numbers from -1 to 1, which federation.secure_aggregation.value_range "
            f"{secure.largest_value:g} excludes. Set federation.secure_aggregation.value_range: 1"
        )
