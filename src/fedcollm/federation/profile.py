"""The profile of the clients' data: what a client sends of its own, and what the server makes of the mean.

A client sends shares of its examples: with each label of the task, of each length, and in each bucket of a sketch
(`data/audit/fingerprints.py`). The aggregator's mean, weighted by numbers of examples, times the sum of these numbers
is how many examples of all clients there are of each.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedcollm.config import AskedStatistics, StatisticsConfig
from fedcollm.data.audit.fingerprints import SCHEME
from fedcollm.data.audit.profiles import BINS, LENGTHS, Profile, item_of_example, kind_of, length_counts, sketch_counts
from fedcollm.errors import SpoiledRoundError, UserError
from fedcollm.messages import Adapter
from fedcollm.modalities.base import Modality

#: Names of the shares, each of them float32: [C] by label, [BINS] by length, and [buckets] of the sketch. Examples that
#: don't share labels have none of the first, and those of a kind without lengths none of the second.
LABELS, LENGTH, SKETCH = "profile/labels", "profile/lengths", "profile/sketch"

_ROUNDING = 1e-3

#: The features with which a modality tells labels without computing anything.
_CONSTANT = StatisticsConfig(features="constant")


def shares(modality: Modality, examples: Sequence[Any], asked: AskedStatistics) -> Adapter:
    """Return the shares of at least one example, by name.

    Raises:
        UserError: an example can't be read, or a library is missing.
    """
    items = [item_of_example(example, asked.literals) for example in examples]
    counts: dict[str, Any] = {SKETCH: sketch_counts(items, asked.buckets)}
    if (kind := kind_of(examples[0])) in LENGTHS:
        counts[LENGTH] = length_counts(items, kind)
    if label_names(modality, examples):
        counts[LABELS] = (modality.evidence(examples, _CONSTANT).targets > 0).sum(dim=0)
    return {name: torch.as_tensor(count, dtype=torch.float64).div(len(items)).float() for name, count in counts.items()}


def blank(modality: Modality, examples: Sequence[Any], asked: AskedStatistics) -> Adapter:
    """Return zeros of the shapes of the shares, given at least one example."""
    sizes = {SKETCH: asked.buckets}
    if kind_of(examples[0]) in LENGTHS:
        sizes[LENGTH] = BINS
    if names := label_names(modality, examples[:1]):
        sizes[LABELS] = len(names)
    return {name: torch.zeros(size) for name, size in sizes.items()}


def label_names(modality: Modality, examples: Sequence[Any]) -> tuple[str, ...]:
    """Return the labels that all examples share, in the order of the task; none if they don't share labels."""
    try:
        return modality.evidence(examples, _CONSTANT).labels
    except UserError:  # answers are free, or a modality of one's own has no evidence
        return ()


def impossible(found: Adapter, room: float) -> str | None:
    """Return why no examples have these shares, or None if some may have them.

    Args:
        found: shares by name, finite.
        room: by how much a value may exceed its bound, for rounding; no more than a thousandth counts.
    """
    room = min(room, _ROUNDING)
    for name in (LABELS, LENGTH, SKETCH):
        values = found.get(name, torch.zeros(1)).double()
        if float(values.min()) < -room:
            return f"{name} has a share of {float(values.min()):.4g}, and no share is negative"
        if float(values.sum()) > 1 + room:
            return f"the shares in {name} sum to {float(values.sum()):.4g}, and there are no more than all examples"
    return None


def pooled(mean: Adapter, clients: int, examples: int, modality: Modality, one: Any) -> Profile:
    """Return the profile of the clients' data.

    Args:
        mean: the mean of the clients' shares, weighted by their numbers of examples.
        clients: the number of clients.
        examples: the number of their examples.
        modality: the modality.
        one: an example of the task.

    Raises:
        SpoiledRoundError: the mean can't be that of honest clients.
    """
    counts = {name: _counts(mean[name], examples) for name in (LABELS, LENGTH, SKETCH) if name in mean}
    names = label_names(modality, [one])
    try:
        return Profile(
            scheme=SCHEME,
            kind=kind_of(one),
            clients=clients,
            examples=examples,
            labels=dict(zip(names, counts.get(LABELS, ()), strict=True)),
            lengths=counts.get(LENGTH, []),
            sketch=counts[SKETCH],
        )
    except ValueError as error:
        reason = f"no examples have the profile that came of the clients' sums, so one of them is faulty: {error}"
        raise SpoiledRoundError(reason) from error


def _counts(shares: Tensor, examples: int) -> list[int]:
    counts: Any = shares.double().mul(examples).round().clamp(min=0)
    return [int(count) for count in counts]
