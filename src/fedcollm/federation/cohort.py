"""Who is asked in a round: the transport to the clients, the sample of a round, and who is left out."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from fedcollm.config import asked_clients
from fedcollm.federation.aggregation.base import Ask
from fedcollm.messages import Adapter, Answer, Failure, Request, Score, readable
from fedcollm.seeding import RunIdentity, derive_seed


class Transport(Protocol):
    """Carries requests to clients and answers back, within one process or over a network."""

    def clients(self) -> Sequence[str]:
        """Return the ids of the clients that can be asked."""
        ...

    def ask(self, requests: Mapping[str, Request]) -> Iterator[Answer]:
        """Send each client its request, and yield the answers as they arrive."""
        ...


@runtime_checkable
class Simulation(Protocol):
    """What a transport within one process sees of its clients, and no server ever does."""

    def failures(self) -> Mapping[str, Exception]:
        """Return why clients could not carry out their last request on their data, by client id."""
        ...

    def own_scores(self) -> Mapping[str, Score]:
        """Return the scores of the adapters that clients keep for themselves, by client id."""
        ...


def sample(ids: Sequence[str], fraction: float, seed: int, round_index: int) -> list[str]:
    """Sample the clients of a round: at least one, if there are any.

    Args:
        ids: ids of all clients.
        fraction: the share of clients to sample.
        seed: seed of the run.
        round_index: index of the round.

    Returns:
        The sampled ids, in the order of `ids`.

    >>> sample(["a", "b", "c", "d"], 0.5, 0, 1) == sample(["a", "b", "c", "d"], 0.5, 0, 1)
    True
    >>> len(sample(["a", "b", "c", "d"], 0.5, 0, 1))
    2
    """
    count = asked_clients(len(ids), fraction)
    chosen = set(random.Random(derive_seed(seed, "sample", round_index)).sample(range(len(ids)), count))
    return [client for i, client in enumerate(ids) if i in chosen]


def of_round(public: Sequence[Any], size: int | None, identity: RunIdentity, round_index: int) -> Sequence[Any]:
    """Return the part of D_a that a round uses: all labelled examples, and the next ones of the unlabelled.

    Args:
        public: D_a.
        size: number of unlabelled examples in a round; None for all.
        identity: the run, whose seed decides their order.
        round_index: index of the round, 1 for the first one.
    """
    unlabelled = [example for example in public if example.label is None]
    if size is None or size >= len(unlabelled):
        return public
    random.Random(identity.derive("unlabelled")).shuffle(unlabelled)
    first = size * (round_index - 1)
    chosen = [unlabelled[i % len(unlabelled)] for i in range(first, first + size)]
    return [example for example in public if example.label is not None] + chosen


def without(ask: Ask, left_out: Adapter) -> Ask:
    """Return a function that asks as `ask` does, except clients that are left out, for which it yields a Failure.

    Args:
        ask: sends requests and yields answers.
        left_out: client id to the round, [1], that the client has spoiled.
    """

    def asking(requests: Mapping[str, Request]) -> Iterator[Answer]:
        for client in requests.keys() & left_out.keys():
            yield Failure(client, f"left out since it spoiled round {int(left_out[client])}")
        yield from ask({client: request for client, request in requests.items() if client not in left_out})

    return asking


def failures_of(transport: Transport, participants: Sequence[str], when: str) -> tuple[str, ...]:
    """Return a sentence about each client of a simulation that failed on its data, and so changed nothing.

    Args:
        transport: the transport to the clients; over a network, nobody sees that a client failed.
        participants: ids of the clients whose answers were used.
        when: what they were asked for.

    Raises:
        Exception: that of the first client, if all of them failed.
    """
    failures: Mapping[str, Exception] = transport.failures() if isinstance(transport, Simulation) else {}
    failed = [client for client in participants if client in failures]
    if failed and len(failed) == len(participants):
        raise failures[failed[0]]
    return tuple(readable(f"{when}: client {client} changed nothing: {failures[client]}") for client in failed)


def another(adapter: Adapter, before: Adapter, seen: Callable[[Adapter], Adapter] = lambda theta: theta) -> Adapter:
    """Return an adapter, or one that differs in a value, as little as possible, if clients would see that of before.

    Clients help to open the sum of a θ for one list of survivors only, so that the next round needs another θ.

    Args:
        adapter: θ of the next round.
        before: θ as clients have seen it.
        seen: returns θ of the next round as clients will see it.
    """
    first = adapter[min(adapter)].flatten()[:1]
    step, changed = torch.nextafter(first, torch.full_like(first, torch.inf)) - first, adapter
    while all(torch.equal(tensor, before[name]) for name, tensor in seen(changed).items()):
        changed = {name: tensor.clone() for name, tensor in adapter.items()}
        changed[min(changed)].view(-1)[:1].add_(step)
        step = 2 * step
    return changed
