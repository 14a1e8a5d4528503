"""Statistics of the clients' examples, which they send once: second moments, and the profile of their data.

From second moments, ridge regression follows in closed form. For features X and targets Y of all clients' examples,
W = (XᵀX + λI)⁻¹ XᵀY (Hoerl and Kennard 1970) needs only XᵀX and XᵀY, which are sums over examples, and so over clients.
A client sends the means over its examples as if they were an adapter. The aggregator's mean, weighted by numbers of
examples, is then that of all clients' examples: in plain, or under secure aggregation. No entry is larger than 1,
because no row is longer than 1.

If an example has choices of its own, only the differences between its choices tell which one is right. So the mean of
its rows is subtracted from each of them, and each row weighs 1/C_i, so that every example weighs 1.

The profile is in `profile.py`. A request whose adapter consists of zeros under the names of one part, or of both, asks
for them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedcollm.config import AskedStatistics, StatisticsConfig
from fedcollm.errors import RefusalError, SpoiledRoundError, UserError
from fedcollm.federation import profile
from fedcollm.messages import Adapter, TrainRequest, misfit
from fedcollm.modalities.base import Modality
from fedcollm.modalities.evidence import Evidence, checked

#: Names of the statistics: the upper triangle of XᵀX / n row by row, [d (d + 1) / 2], and XᵀY / n, [d, C].
GRAM, TARGETS = "statistics/gram", "statistics/targets"

#: Index of the round in which statistics are asked for: before any training. A client under secure aggregation opens
#: the sum of a round for one set of survivors only; another set would give one client's statistics as a difference.
ROUND = 0

#: Room for rounding above what statistics can be: of a client's own, and of a mean that secure aggregation rounded.
_ROUNDING, _MEAN_ROUNDING = 1e-3, 1e-2

_EXAMPLES_AT_ONCE = 1024
_linalg: Any = torch.linalg  # has no type annotations


def evidence(
    modality: Modality, examples: Sequence[Any], features: StatisticsConfig, model: nn.Module | None
) -> Iterator[tuple[Sequence[Any], Evidence]]:
    """Yield parts of the examples with their evidence, checked, so that not all rows are in memory at once.

    Args:
        modality: makes rows of examples.
        examples: the examples.
        features: the kind of features.
        model: the SLM, for the features `slm`.

    Raises:
        UserError: the examples do not suit a control in closed form.
    """
    for start in range(0, len(examples), _EXAMPLES_AT_ONCE):
        part = examples[start : start + _EXAMPLES_AT_ONCE]
        yield part, checked(modality.evidence(part, features, model), part, modality)


def moments(
    modality: Modality, examples: Sequence[Any], features: StatisticsConfig, model: nn.Module | None
) -> Adapter:
    """Return the statistics of at least one example, by name, in float32; see `evidence`.

    They are summed in float64. An unlabelled example counts in XᵀX and not in XᵀY.
    """
    gram, targets = torch.zeros(()).double(), torch.zeros(()).double()
    labels: set[tuple[str, ...]] = set()
    for _, part in evidence(modality, examples, features, model):
        rows = _centered(part)
        gram, targets = gram + rows.T @ rows, targets + rows.T @ _weighted(part, part.targets.double())
        labels.add(part.labels)
    if len(labels) > 1:
        raise UserError("control: not all examples share their labels. Give all examples the same choices.")
    upper = torch.triu_indices(*gram.shape)
    return {
        GRAM: (gram[upper[0], upper[1]] / len(examples)).float(),
        TARGETS: (targets / len(examples)).float(),
    }


def _centered(part: Evidence) -> Tensor:
    """Return [R, d] float64 rows. If an example has several, they have a mean of zero, and each is divided by √C_i."""
    rows = part.rows.double()
    if part.labels:
        return rows
    return _weighted(part, torch.cat([some - some.mean(dim=0) for some in torch.split(rows, list(part.counts))]))


def _weighted(part: Evidence, values: Tensor) -> Tensor:
    """Return the values of rows, [R, n], each divided by the square root of the number of its example's rows."""
    counts = torch.tensor(part.counts)
    return values / counts.repeat_interleave(counts).sqrt()[:, None]


def own(modality: Modality, examples: Sequence[Any], asked: AskedStatistics, model: nn.Module | None) -> Adapter:
    """Return all statistics of at least one example that are asked for, by name, in float32.

    Raises:
        UserError: the examples have no such statistics.
    """
    found = moments(modality, examples, asked.ridge, model) if asked.ridge is not None else {}
    return found | (profile.shares(modality, examples, asked) if asked.buckets else {})


def blank(modality: Modality, examples: Sequence[Any], asked: AskedStatistics, model: nn.Module | None) -> Adapter:
    """Return zeros of the shapes of the statistics that are asked for, given at least one example; see `own`."""
    found = {} if asked.ridge is None else moments(modality, examples[:1], asked.ridge, model)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in found.items()}
    return zeros | (profile.blank(modality, examples, asked) if asked.buckets else {})


@dataclass(frozen=True)
class Part:
    """One kind of statistics.

    Attributes:
        names: names of its tensors.
        optional: those that only some examples have.
        impossible: returns why no examples have these statistics; None if some may have them.
        agreed: whether a client agreed to send it.
        refused: why it does not send it otherwise, in words.
    """

    names: frozenset[str]
    optional: frozenset[str]
    impossible: Callable[[Adapter, float], str | None]
    agreed: Callable[[AskedStatistics], bool]
    refused: str


def asked_for(request: TrainRequest) -> bool:
    """Return whether a request asks for statistics instead of a tuned adapter."""
    return any(not part.names.isdisjoint(request.adapter) for part in PARTS.values())


def check_request(request: TrainRequest, agreed: AskedStatistics) -> AskedStatistics:
    """Return what a request asks for of the statistics that a client agreed to send.

    Args:
        request: the request, from a server that may be hostile.
        agreed: the statistics that the client agreed to send.

    Raises:
        RefusalError: no client should answer it, whatever its examples are; says what is wrong.
    """
    if request.round_index != ROUND:
        raise RefusalError(f"statistics are asked for in round {request.round_index}, and only round {ROUND} has any")
    asked = {name: part for name, part in PARTS.items() if not part.names.isdisjoint(request.adapter)}
    if refused := next((part.refused for part in asked.values() if not part.agreed(agreed)), None):
        raise RefusalError(f"statistics are asked for, and in this client's configuration, {refused}")
    names = frozenset[str]().union(*(part.names for part in asked.values()))
    needed = names.difference(*(part.optional for part in asked.values()))
    known = needed <= request.adapter.keys() <= names
    if not known or any(t.dtype != torch.float32 for t in request.adapter.values()):
        held = " and ".join(sorted(names))
        raise RefusalError(f"a request for statistics holds {held} in float32, and nothing else")
    if any(tensor.count_nonzero() for tensor in request.adapter.values()):
        raise RefusalError("the request for statistics holds other values than zeros")
    sketch = request.adapter.get(profile.SKETCH)
    if sketch is not None and tuple(sketch.shape) != (agreed.buckets,):
        raise RefusalError(
            f"a sketch of {list(sketch.shape)} buckets is asked for, and {agreed.buckets} were agreed on"
        )
    ridge = agreed.ridge if "ridge" in asked else None
    return replace(agreed, ridge=ridge, buckets=agreed.buckets if "profile" in asked else 0)


def check_fit(request: TrainRequest, own: Adapter) -> None:
    """Check that a client's own statistics have the shapes that were asked for, and are finite.

    Raises:
        UserError: they have not, because the client's examples or its SLM are not those of the other parties.
    """
    if reason := misfit(own, request.adapter):
        raise UserError(
            f"the statistics of this client's examples don't fit those that are asked for: {reason}. Give it examples "
            "with the labels of the other parties."
        )


def check_mean(mean: Adapter) -> None:
    """Check that a mean of statistics without noise can be that of honest clients.

    Raises:
        SpoiledRoundError: it can't.
    """
    if reason := impossible(mean, _MEAN_ROUNDING):
        raise SpoiledRoundError(f"in the mean of the clients' statistics, {reason}, so one of the clients is faulty.")


def impossible(statistics: Adapter, room: float = _ROUNDING) -> str | None:
    """Return why no examples have these statistics, or None if some may have them.

    Args:
        statistics: by name, finite and without noise.
        room: by how much a value may exceed its bound, for rounding.
    """
    parts = (part for part in PARTS.values() if not part.names.isdisjoint(statistics))
    return next((reason for part in parts if (reason := part.impossible(statistics, room))), None)


def _impossible_moments(statistics: Adapter, room: float) -> str | None:
    """Return why no examples have these second moments, or None if some may have them.

    A row of X is no longer than 1 and a target is from -1 to 1. So the trace of XᵀX / n is at most 1, and by the
    inequality of Cauchy and Schwarz |XᵀX_ij|² ≤ XᵀX_ii XᵀX_jj and |XᵀY_ic|² ≤ XᵀX_ii, all of them divided by n.

    Args:
        statistics: XᵀX / n and XᵀY / n by name, finite and without noise.
        room: by how much a value may exceed its bound, for rounding.
    """
    gram, targets = statistics[GRAM].double(), statistics[TARGETS].double()
    rows = torch.split(gram, list(range(len(targets), 0, -1)))  # row i of the upper triangle starts at the diagonal
    diagonal = torch.stack([row[0] for row in rows])
    if float(diagonal.min()) < -room:
        return f"XᵀX has {float(diagonal.min()):.4g} on its diagonal, and squares are not negative"
    if float(diagonal.sum()) > 1 + room:
        return f"XᵀX has a trace of {float(diagonal.sum()):.4g}, and that of rows no longer than 1 is at most 1"
    lengths = diagonal.clamp(min=0).sqrt()
    excess = max(float((row.abs() - lengths[i] * lengths[i:]).max()) for i, row in enumerate(rows))
    if excess > room:
        return f"an entry of XᵀX is {excess:.4g} larger than those on the diagonal allow"
    excess = float((targets.abs() - lengths[:, None]).max())
    return f"an entry of XᵀY is {excess:.4g} larger than XᵀX allows" if excess > room else None


#: Name of a kind of statistics to what there is to know of it.
PARTS: Mapping[str, Part] = {
    "ridge": Part(
        frozenset({GRAM, TARGETS}),
        frozenset(),
        _impossible_moments,
        lambda agreed: agreed.ridge is not None,
        "neither control nor pseudo_labels names them",
    ),
    "profile": Part(
        frozenset({profile.LABELS, profile.LENGTH, profile.SKETCH}),
        frozenset({profile.LABELS, profile.LENGTH}),
        profile.impossible,
        lambda agreed: agreed.buckets > 0,
        "federation.profile is false",
    ),
}


def pooled(parts: Sequence[tuple[Adapter, int]]) -> Adapter:
    """Return the statistics of several parts together.

    Args:
        parts: the statistics of each part, and its number of examples.
    """
    total = sum(count for _, count in parts)
    return {
        name: sum((part[name].double() * (count / total) for part, count in parts), start=torch.zeros(()).double())
        for name in (GRAM, TARGETS)
    }


def solve(statistics: Adapter, ridge: float) -> Tensor:
    """Return W = (XᵀX / n + ridge I)⁻¹ XᵀY / n, [d, C] float32, computed in float64.

    Noise, as under differential privacy, can leave XᵀX with negative eigenvalues, which no features have. They are then
    set to zero.

    Args:
        statistics: XᵀX / n and XᵀY / n by name.
        ridge: λ / n, where n is the number of examples. It counts as at least 2⁻²³, the rounding of float32, which
            would decide below.

    Raises:
        SpoiledRoundError: the solution is not finite.
    """
    ridge = max(ridge, torch.finfo(torch.float32).eps)
    targets = statistics[TARGETS].double()
    size = len(targets)
    upper = torch.triu_indices(size, size)
    gram = torch.zeros(size, size, dtype=torch.float64)
    gram[upper[0], upper[1]] = gram[upper[1], upper[0]] = statistics[GRAM].double()
    factor, failed = _linalg.cholesky_ex(gram + ridge * torch.eye(size, dtype=torch.float64))
    if failed:
        values, vectors = _linalg.eigh(gram)
        solution = vectors @ ((vectors.T @ targets) / (values.clamp(min=0.0) + ridge)[:, None])
    else:
        solution = torch.cholesky_solve(targets, factor)
    weights = solution.float().contiguous()
    if not bool(weights.isfinite().all()):
        raise SpoiledRoundError(
            f"the regression on the statistics has no finite solution with a ridge of {ridge:.4g} per example, so one "
            "of the clients is faulty."
        )
    return weights


def solve_together(parts: Sequence[tuple[Adapter, int]], ridge: float) -> Tensor:
    """Return W, [d, C] float32, of several parts together; see `solve`.

    Args:
        parts: the statistics of each part, and its number of examples.
        ridge: λ, for sums over all examples.
    """
    return solve(pooled(parts), ridge / sum(count for _, count in parts))


def scores(weights: Tensor, part: Evidence) -> list[Tensor]:
    """Return [C_i] scores of each example's labels or choices, of which the highest is the prediction.

    Args:
        weights: W, [d, C], from `solve`.
        part: the evidence of the examples.
    """
    return part.by_example(part.rows.double() @ weights.double())
