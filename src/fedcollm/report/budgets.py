"""Budgets of a run: its optimizer steps and the sizes of its data, from its configuration and `data.json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedcollm.config import RunConfig
from fedcollm.federation.cohort import sample
from fedcollm.training.batches import step_count


@dataclass(frozen=True)
class Steps:
    """Numbers of optimizer steps in a whole run.

    Attributes:
        client: steps of all clients together.
        server: steps of each of the server's two models.
    """

    client: int
    server: int

    def __add__(self, other: "Steps") -> "Steps":
        return Steps(self.client + other.client, self.server + other.server)


@dataclass(frozen=True)
class Sizes:
    """Numbers of examples.

    Attributes:
        clients: number of clients.
        private: number of private examples of all clients together.
        labelled: number of labelled examples in D_a.
        unlabelled: number of unlabelled examples in D_a.
        test: number of test examples.
    """

    clients: int
    private: int
    labelled: int
    unlabelled: int
    test: int

    def to_dict(self) -> dict[str, int]:
        """Return each size by its name."""
        return asdict(self)


def sizes(data: Mapping[str, Any]) -> Sizes:
    """Return the numbers of examples according to the content of `data.json`."""
    private = [sum(labels.values()) for labels in data["clients"].values()]
    return Sizes(len(private), sum(private), sum(data["public"].values()), data["unlabelled"], data["test"])


def steps(config: RunConfig, data: Mapping[str, Any]) -> Steps:
    """Return the optimizer steps of a run, summed over all rounds.

    Args:
        config: the run's configuration.
        data: the content of the run's `data.json`.
    """
    if config.control is not None:
        return Steps(0, 0)
    size = {client: sum(labels.values()) for client, labels in data["clients"].items()}
    wanted = config.federation.participants
    ids = [client for client in size if wanted is None or client in wanted]
    rounds = range(1, config.federation.rounds + 1)
    asked = [client for index in rounds for client in sample(ids, config.federation.fraction, config.seed, index)]
    client = sum(_local_steps(config, size[client]) for client in asked)
    per_round = config.server.unlabelled_per_round
    unlabelled = data["unlabelled"] if per_round is None else min(per_round, data["unlabelled"])
    public = sum(data["public"].values()) + unlabelled
    server = config.federation.rounds * config.server.epochs * step_count(public, config.server)
    return Steps(client, server)


def _local_steps(config: RunConfig, examples: int) -> int:
    """Return the steps of one client per round; under example-level privacy, batches are drawn at the sampling rate."""
    privacy = config.federation.privacy
    if privacy is not None and privacy.sampling_rate is not None:
        return round(config.client.epochs / privacy.sampling_rate)
    return config.client.epochs * step_count(examples, config.client)
