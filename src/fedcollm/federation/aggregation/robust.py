"""Aggregation rules that a few faulty or hostile clients can't move far.

All of them work on the changes δ_k = θ_k − θ of the K updates, with all tensors of an adapter laid end to end in one
vector. LoRA's A and B are separate parts of that vector: the rules compare what clients trained, and not the products
B A. With a frozen A (`freeze_a`) or with cores, the two are the same up to a linear map.

No rule looks at the clients' numbers of examples: a hostile client can claim any number. Updates must have one shape,
so that clients with ranks of their own (`client.ranks`) are refused. The rules need single updates, which secure
aggregation hides.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fedcollm.federation.aggregation.base import Start
from fedcollm.messages import Adapter

#: The most steps of Weiszfeld's algorithm, and the change of all weights, summed, at which it stops.
_STEPS, _ENOUGH = 1000, 1e-10

#: Share of the median agreement below which a change disagrees. Between hospitals of `icd10`, the agreements of a round
#: are from .47 to .52 at first and from .05 to .10 after four rounds; that of noise is about 0.
_DISAGREES = 0.25


@dataclass(frozen=True)
class Changes:
    """The changes δ_k = θ_k − θ of K clients.

    Attributes:
        adapters: θ_k of each client.
        start: θ, f and the server's reference.
    """

    adapters: Sequence[Adapter]
    start: Start

    def __len__(self) -> int:
        return len(self.adapters)

    def of(self, name: str) -> Tensor:
        """Return the changes of one tensor, [K, d] float64."""
        theta = self.start.theta[name].double()
        return torch.stack([(adapter[name].double() - theta).flatten() for adapter in self.adapters])

    def reference(self, name: str) -> Tensor:
        """Return the change of one tensor by the server's own training, [d] float64; zeros without a reference."""
        theta = self.start.theta[name].double()
        own = self.start.reference
        return ((theta if own is None else own[name].double()) - theta).flatten()

    def squared_distances(self) -> Tensor:
        """Return ‖δ_j − δ_k‖², [K, K] float64. Differences are taken first: large changes cost no precision."""
        total = torch.zeros(len(self), len(self), dtype=torch.float64)
        exactly: Any = {"compute_mode": "donot_use_mm_for_euclid_dist"}
        for name in self.start.theta:
            values = self.of(name)
            total += torch.cdist(values, values, **exactly).square().cpu()
        return total

    def products(self) -> Tensor:
        """Return the inner products δ_j · δ_k, [K, K] float64."""
        total = torch.zeros(len(self), len(self), dtype=torch.float64)
        for name in self.start.theta:
            values = self.of(name)
            total += (values @ values.T).cpu()
        return total


#: What a rule makes of the changes: one weight for each client, [K], or the combined change of each tensor by its name.
Combined = Tensor | Adapter
Combine = Callable[[Changes], Combined]


class RobustRule:
    """An aggregation rule that sees all updates at once; they are held until the end.

    Attributes:
        weights: after `value`, the weight of each update, in their order; None if the rule combines values one by one.

    Args:
        combine: the rule.
        start: θ, f and the server's reference.
    """

    def __init__(self, combine: Combine, start: Start):
        self.weights: list[float] | None = None
        self._combine, self._start = combine, start
        self._adapters: list[Adapter] = []

    def add(self, adapter: Adapter, weight: float) -> None:
        """Add one client's adapter; its weight does not count."""
        self._adapters.append(adapter)

    def value(self) -> Adapter:
        """Return θ plus the combination of all changes, in θ's dtypes."""
        changes, theta = Changes(self._adapters, self._start), self._start.theta
        combined = self._combine(changes)
        if isinstance(combined, Tensor):
            self.weights = cast(Any, combined).tolist()
            weights = combined
            combined = {name: weights.to(theta[name].device) @ changes.of(name) for name in theta}
        return {name: (t.double() + combined[name].reshape(t.shape)).to(t.dtype) for name, t in theta.items()}


def median(changes: Changes) -> Combined:
    """Return the median of each value (Yin et al., arXiv 1803.01498, definition 1).

    With an even number of clients it is the mean of the two middle values.
    """
    return {name: _trimmed(changes.of(name), (len(changes) - 1) // 2) for name in changes.start.theta}


def trimmed_mean(changes: Changes) -> Combined:
    """Return the mean of each value without the f smallest and the f largest (arXiv 1803.01498, definition 2)."""
    return {name: _trimmed(changes.of(name), changes.start.faulty) for name in changes.start.theta}


def geometric_median(changes: Changes) -> Combined:
    """Return the weights of the point z that minimizes Σ_k ‖z − δ_k‖, by Weiszfeld's algorithm.

    The point is a mean of the changes (Pillutla et al., RFA, arXiv 1912.13445, algorithm 2), with all clients counted
    alike. Distances count as at least 10⁻⁹ of the median one, so that z may be a change itself.
    """
    squared, weights = changes.squared_distances(), _chosen(range(len(changes)), len(changes))
    if not squared.any():
        return weights
    smallest = float(squared[squared > 0].median().sqrt()) * 1e-9
    for _ in range(_STEPS):
        to_point = (squared @ weights - weights @ squared @ weights / 2).clamp(min=0).sqrt()
        before, weights = weights, 1 / to_point.clamp(min=smallest)
        weights = weights / weights.sum()
        if float((weights - before).abs().sum()) < _ENOUGH:
            break
    return weights


def krum(changes: Changes) -> Combined:
    """Return weight 1 for the change with the smallest score (Blanchard et al., NeurIPS 2017, section 4).

    The score is the sum of the squared distances to the K − f − 2 nearest other changes. Of equal scores, the first
    client's wins.
    """
    return _chosen(krum_order(changes.squared_distances(), changes.start.faulty)[:1], len(changes))


def multi_krum(changes: Changes) -> Combined:
    """Return equal weights for the K − f changes with the smallest scores of Krum (Blanchard et al., section 4)."""
    count = len(changes)
    order = krum_order(changes.squared_distances(), changes.start.faulty)
    return _chosen(order[: count - changes.start.faulty], count)


def bulyan(changes: Changes) -> Combined:
    """Return Bulyan over Krum (El Mhamdi et al., arXiv 1802.07927, section 4).

    Krum selects one change after the other, each time among those that are left, until there are m = K − 2f. Of each
    value, the mean over the m − 2f that are closest to the median of the selected ones is taken.
    """
    squared, faulty, left = changes.squared_distances(), changes.start.faulty, list(range(len(changes)))
    for _ in range(len(changes) - 2 * faulty):
        left.remove(left[krum_order(squared[left][:, left], faulty)[0]])
    chosen = [client for client in range(len(changes)) if client not in left]
    return {name: _around_median(changes.of(name)[chosen], 2 * faulty) for name in changes.start.theta}


def trust(changes: Changes) -> Combined:
    """Return FLTrust's weights (Cao et al., arXiv 2012.13995, section 4.2).

    With the server's own change δ_0, they are max(0, cos(δ_k, δ_0)) ‖δ_0‖ / ‖δ_k‖, divided by the sum of these
    cosines: each change counts by its direction, and none is longer than the server's. If no client agrees with the
    server at all, the weights are zero, and θ stays as it is.
    """
    dot, norms, own = (torch.zeros(len(changes), dtype=torch.float64) for _ in range(3))
    for name in changes.start.theta:
        values, reference = changes.of(name), changes.reference(name)
        dot += (values @ reference).cpu()
        norms += values.square().sum(1).cpu()
        own += reference.square().sum().cpu()
    norms, own = norms.sqrt(), own.sqrt()
    cosines = torch.where(norms * own > 0, dot / (norms * own), 0.0).clamp(min=0)
    total = cosines.sum()
    return torch.where(cosines > 0, cosines * own / (norms * total), 0.0)


def agreement(changes: Changes) -> Combined:
    """Return equal weights for the changes that point the way of the others, less for those that are too long.

    The agreement of a change is its cosine with the sum of the others' directions. The change that agrees least is left
    out if its agreement is negative or less than a quarter of the median one, then the next of those that are left,
    until f are out. A change that is longer than the median one is scaled down to it. Leaving out by cosines is after
    AFA (Muñoz-González et al., arXiv 1909.05125, algorithm 1), and the bound of lengths after Sun et al. (arXiv
    1911.07963, section 4). Unlike medians, the rule keeps the mean of clients whose data differ.
    """
    products, left = changes.products(), list(range(len(changes)))
    lengths = products.diagonal().clamp(min=0).sqrt()
    cosines = torch.where(lengths[:, None] * lengths > 0, products / (lengths[:, None] * lengths), 0.0)
    for _ in range(changes.start.faulty):
        agreed = _agreement(cosines[left][:, left])
        if float(agreed.min()) > max(0.0, _DISAGREES * float(agreed.median())):
            break
        left.pop(int(agreed.argmin()))
    moved = lengths[left][lengths[left] > 0]
    longest = moved.median() if len(moved) else torch.ones(())
    return _chosen(left, len(changes)) * torch.where(lengths > longest, longest / lengths, 1.0)


def _agreement(cosines: Tensor) -> Tensor:
    """Return the cosine of each of n directions with the sum of the others, [n], from their cosines, [n, n].

    >>> _agreement(torch.tensor([[1.0, 0, -1], [0, 1, 0], [-1, 0, 1]])).tolist()
    [-0.7071067690849304, 0.0, -0.7071067690849304]
    """
    with_others = cosines.sum(1) - cosines.diagonal()
    squared = cosines.sum() - 2 * cosines.sum(1) + cosines.diagonal()  # of the sum of the others, without each of them
    return torch.where(squared > 0, with_others / squared.clamp(min=1e-12).sqrt(), 0.0)


#: The rules by name: rows of `AGGREGATIONS` in `config/choices.py`.
ROBUST: Mapping[str, Combine] = {
    "median": median,
    "trimmed_mean": trimmed_mean,
    "geometric_median": geometric_median,
    "krum": krum,
    "multi_krum": multi_krum,
    "bulyan": bulyan,
    "trust": trust,
    "agreement": agreement,
}


def krum_order(squared: Tensor, faulty: int) -> list[int]:
    """Return the indices of all clients in the order of their scores, the smallest first.

    Args:
        squared: squared distances, [n, n].
        faulty: f. A score is over the n − f − 2 nearest others, and at least over one.

    >>> krum_order(torch.tensor([[0.0, 1, 100], [1, 0, 81], [100, 81, 0]]), 0)
    [0, 1, 2]
    """
    near = max(1, len(squared) - faulty - 2)
    scores = squared.sort(dim=1).values[:, 1 : near + 1].sum(1)  # the first is the client's distance to itself
    return cast(Any, scores.argsort(stable=True)).tolist()


def _trimmed(values: Tensor, trim: int) -> Tensor:
    """Return the mean over clients of [K, d] values without the `trim` smallest and the `trim` largest, [d]."""
    return values.sort(dim=0).values[trim : len(values) - trim].mean(0)


def _around_median(values: Tensor, without: int) -> Tensor:
    """Return the mean of [m, d] values over the m − `without` that are closest to their median, [d]."""
    center = _trimmed(values, (len(values) - 1) // 2)
    nearest = (values - center).abs().argsort(dim=0, stable=True)[: len(values) - without]
    return values.gather(0, nearest).mean(0)


def _chosen(clients: Sequence[int], count: int) -> Tensor:
    """Return equal weights for some of `count` clients, [K], that sum to one."""
    weights = torch.zeros(count, dtype=torch.float64)
    weights[list(clients)] = 1 / len(clients)
    return weights
