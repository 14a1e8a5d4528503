"""Weighted mean of the clients' adapters (Algorithm 1, server side)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedcollm.errors import NonFiniteError
from fedcollm.messages import Adapter, ClientUpdate


@dataclass(frozen=True)
class Aggregate:
    """What the server keeps of a round's updates: sums, no single client's values.

    Attributes:
        adapter: the weighted mean, in the updates' dtype.
        loss: mean training loss over examples.
        clients_score: mean over clients of their tuned SLM's score; None if none was asked for.
        seconds: sums over clients by part.
        participants: ids, in order.
    """

    adapter: Adapter
    loss: float
    clients_score: float | None
    seconds: dict[str, float]
    participants: tuple[str, ...]


def in_order(updates: Iterable[ClientUpdate], ids: Sequence[str]) -> Iterator[ClientUpdate]:
    """Updates in the order of `ids`, each as early as it can be had; only those that came too early wait.

    A fixed order makes the floating-point sum independent of who answers first.
    """
    waiting: dict[str, ClientUpdate] = {}
    expected = list(ids)
    for update in updates:
        waiting[update.client] = update
        while expected and expected[0] in waiting:
            yield waiting.pop(expected.pop(0))
    yield from (waiting[client] for client in expected if client in waiting)


def aggregate(updates: Iterable[ClientUpdate], uniform: bool = False) -> Aggregate:
    """Fold updates into their mean, holding one update at a time.

    Args:
        updates: in a fixed order.
        uniform: weight 1/K (the paper's Algorithm 1) instead of n_k / n (FedAvg, McMahan et al. 2017).

    Raises:
        ValueError: no updates.
        NonFiniteError: an update has a value that is NaN or infinite.
    """
    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    total = examples = loss = 0.0
    scores: list[float] = []
    seconds: dict[str, float] = {}
    participants: list[str] = []
    for update in updates:
        if not all(tensor.isfinite().all() for tensor in update.adapter.values()):
            where = f"client {update.client}, round {update.round_index}"
            raise NonFiniteError(f"{where}: its adapter is not finite; the last good state is kept. Look at its data.")
        weight = 1.0 if uniform else float(update.examples)
        for name, tensor in update.adapter.items():
            term = tensor.double() * weight
            sums[name] = term if name not in sums else sums[name].add_(term)
            dtypes[name] = tensor.dtype
        total += weight
        examples += update.examples
        loss += update.loss * update.examples
        scores += [update.score.value] if update.score else []
        seconds = {part: seconds.get(part, 0.0) + value for part, value in update.seconds.items()}
        participants.append(update.client)
    if not participants:
        raise ValueError("no client answered")
    adapter = {name: (value / total).to(dtypes[name]) for name, value in sums.items()}
    mean_score = sum(scores) / len(scores) if scores else None
    return Aggregate(adapter, loss / examples, mean_score, seconds, tuple(participants))
