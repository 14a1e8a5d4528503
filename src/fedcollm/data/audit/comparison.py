"""Compare a client's own data with the profile of the federation: labels, lengths, and copies that others have too.

Labels and lengths: Fisher's exact test of each bin against the other clients' examples, with the correction of Holm
(1979) for the number of bins. Copies: a bucket that holds a record of one's own is hit if another client has an example
in it. By chance, that happens as often as in the buckets in which one has nothing: with probability p. If a share q of
the own n records has a copy elsewhere, a bucket with c of them is not hit with probability (1 − p)(1 − q)ᶜ. The
estimate is the q with which as many buckets are expected not to be hit as are not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedcollm.data.audit.profiles import Own, Profile, bin_names

#: Probability that any bin of a table is called different although none is.
LEVEL = 0.05

#: Copies can't be told from chance if it hits more than this share of the buckets, or if fewer than so many buckets
#: are empty at all parties.
CROWDED, _FEWEST_EMPTY = 0.9, 10

#: Share of the own records that the profile lacks, from which the own data counts as no part of the federation.
_STRANGE = 0.25


@dataclass(frozen=True)
class Row:
    """A label or a bin of lengths.

    Attributes:
        name: its name.
        own: number of own records.
        own_share: their share of the own records.
        federation_share: the share of the federation's examples, the own ones included.
        differs: whether the difference is larger than chance explains.
    """

    name: str
    own: int
    own_share: float
    federation_share: float
    differs: bool


@dataclass(frozen=True)
class Copies:
    """How many of one's own records another client has too.

    Attributes:
        records: the estimate.
        error: its standard error, in records.
        hit: number of own records in buckets that another client uses too.
        chance: the probability of that by chance alone.
        crowded: whether nothing can be told, since chance hits nearly every bucket.
    """

    records: float
    error: float
    hit: int
    chance: float
    crowded: bool = False

    @property
    def found(self) -> bool:
        """Whether there are more copies than chance explains: more than two standard errors."""
        return not self.crowded and self.records > 2 * self.error


@dataclass(frozen=True)
class Comparison:
    """A client's own data beside the federation's.

    Attributes:
        examples: number of own records that were compared.
        federation: number of the federation's examples, and of its clients.
        member: whether the own records are part of these.
        missing: number of own records that the profile can't contain.
        labels: a row for each label.
        lengths: a row for each bin of lengths that is not empty.
        unit: the unit of the lengths.
        copies: how many own records another client has too.
        unknown: number of own records with a label that the federation does not have.
    """

    examples: int
    federation: tuple[int, int]
    member: bool
    missing: int
    labels: Sequence[Row]
    lengths: Sequence[Row]
    unit: str
    copies: Copies
    unknown: int = 0


def compare(own: Own, profile: Profile, unit: str) -> Comparison:
    """Return a client's own data beside the federation's.

    Args:
        own: counts of at least one own record.
        profile: the profile of the federation.
        unit: the unit of its lengths, in words.
    """
    whole = np.asarray(profile.sketch, dtype=np.int64)
    missing = int(np.maximum(own.sketch - whole, 0).sum())
    member = missing <= _STRANGE * own.examples
    known = {name: own.labels.get(name, 0) for name in profile.labels}
    lengths = dict(zip(bin_names(profile.kind), own.lengths, strict=True)) if profile.lengths else dict[str, int]()
    shown = _rows(lengths, dict(zip(lengths, profile.lengths, strict=True)), member)
    return Comparison(
        own.examples,
        (profile.examples, profile.clients),
        member,
        missing,
        _rows(known, profile.labels, member),
        [row for row in shown if row.own or row.federation_share],
        unit,
        copies(own.sketch, np.maximum(whole - own.sketch, 0) if member else whole),
        sum(own.labels.values()) - sum(known.values()) if profile.labels else 0,
    )


def _rows(own: Mapping[str, int], whole: Mapping[str, int], member: bool) -> list[Row]:
    """Return a row for each bin, in their order, given the numbers of own records and of the federation's examples."""
    total, everything = sum(own.values()), sum(whole.values())
    if not total or not everything:
        return []
    others = {name: max(count - own[name], 0) if member else count for name, count in whole.items()}
    chances = [_fisher(own[name], total, others[name], sum(others.values())) for name in own]
    return [
        Row(name, own[name], own[name] / total, whole[name] / everything, differs)
        for name, differs in zip(own, holm(chances), strict=True)
    ]


def _fisher(own: int, total: int, others: int, rest: int) -> float:
    """Return the p-value of Fisher's exact test that two parties have the same share in a bin."""
    from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

    found: Any = cast(Any, stats).fisher_exact([[own, total - own], [others, rest - others]])
    return float(found.pvalue)


def holm(chances: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Return which of several hypotheses are rejected, at a level for all of them together.

    >>> holm([0.04, 0.001, 0.02, 0.6])
    [False, True, False, False]
    """
    rejected = [False] * len(chances)
    for place, i in enumerate(sorted(range(len(chances)), key=lambda i: chances[i])):
        if chances[i] > level / (len(chances) - place):
            break
        rejected[i] = True
    return rejected


def copies(own: NDArray[np.int64], others: NDArray[np.int64]) -> Copies:
    """Return how many own records another client has too.

    Args:
        own: [buckets] number of own records in each bucket.
        others: [buckets] number of the other clients' examples.
    """
    records, hit = int(own.sum()), others > 0
    used, free = own > 0, int((own == 0).sum())
    found, chance = int(own[hit].sum()), float(hit[~used].mean()) if free else 1.0
    if chance > CROWDED or free * (1 - chance) < _FEWEST_EMPTY or not records:
        return Copies(0.0, math.inf, found, chance, crowded=True)
    counts, missed = own[used].astype(np.float64), int((~hit & used).sum())
    share = _share(counts, missed / (1 - chance))
    left = (1 - share) ** counts
    missing = (1 - chance) * left
    variance = float((missing * (1 - missing)).sum()) + float(left.sum()) ** 2 * chance * (1 - chance) / free
    slope = (1 - chance) * float((counts * (1 - share) ** (counts - 1)).sum())
    error = records * math.sqrt(variance) / slope if slope else math.inf
    return Copies(records * share, error, found, chance)


def _share(counts: NDArray[np.float64], missed: float) -> float:
    """Return q with Σ (1 − q)ᶜ = `missed`, between 0 and 1, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if float(((1 - middle) ** counts).sum()) > missed else (low, middle)
    return high if missed < len(counts) else 0.0
