"""Statistics of scores: best and final scores of a run, means and intervals over seeds, and paired differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy

from fedcollm.messages import RoundRecord
from fedcollm.report.runs import Method

#: Fewest seeds whose spread is worth an interval; of fewer seeds, plots show each one's value instead.
FEWEST_SEEDS = 3


@dataclass(frozen=True)
class RoleScores:
    """Scores of one role over a run; None if the role was never scored.

    Attributes:
        zero_shot: score before any training (round 0).
        best: highest score of all scored rounds; note that it is chosen on the test examples.
        best_round: the first round with that score.
        final: score of the last scored round.
        final_round: the last scored round.
    """

    zero_shot: float | None = None
    best: float | None = None
    best_round: int | None = None
    final: float | None = None
    final_round: int | None = None


@dataclass(frozen=True)
class Point:
    """One role's score in one round.

    Attributes:
        round: the round.
        mean: mean over seeds.
        half_width: half-width of its 95% interval; None with fewer than `FEWEST_SEEDS` seeds.
        values: each seed's score.
    """

    round: int
    mean: float
    half_width: float | None = None
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Difference:
    """The difference of one method's scores from another's on the same test examples.

    Attributes:
        mean: mean difference over all examples of all seeds, as a share (0.01 is one percentage point).
        low: lower end of its 95% interval.
        high: upper end of its 95% interval.
        p: two-sided p-value of the hypothesis that there is no difference.
        examples: number of pairs of outcomes.
        seeds: number of seeds that the pairs come from.
        seeds_half_width: half-width of the 95% interval of the mean over seeds (Student's t), which includes what
            training again would change; None with fewer than `FEWEST_SEEDS` seeds.
    """

    mean: float
    low: float
    high: float
    p: float
    examples: int
    seeds: int
    seeds_half_width: float | None = None


def role_scores(records: Sequence[RoundRecord], role: str) -> RoleScores:
    """Return the zero-shot, best and final scores of a role; rounds without a finite score do not count."""
    scored = {r.round: r.scores[role] for r in records if math.isfinite(r.scores.get(role, math.nan))}
    if not scored:
        return RoleScores()
    best = max(scored, key=lambda index: scored[index])
    final = max(scored)
    return RoleScores(scored.get(0), scored[best], best, scored[final], final)


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the half-width of its 95% interval (Student's t), None below `FEWEST_SEEDS` values.

    Two values alone would give an interval of 12.7 standard errors to each side, which says nothing.
    """
    mean = math.fsum(values) / len(values)
    if len(values) < FEWEST_SEEDS:
        return mean, None
    from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]

    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, float(stdtrit(len(values) - 1, 0.975)) * math.sqrt(variance / len(values))


def sampling_half_width(score: float, examples: int) -> float:
    """Return the half-width of the 95% Wilson interval of an accuracy on this many test examples."""
    z = 1.959964
    return z / (1 + z * z / examples) * math.sqrt(score * (1 - score) / examples + z * z / (4 * examples**2))


def outcome_half_width(outcomes: Sequence[float]) -> float | None:
    """Return the half-width of the 95% interval of the mean of one seed's outcomes, over samples of test examples.

    It is that of Wilson's interval if every outcome is 0 or 1. Otherwise, as for means over clients, it is that of the
    normal approximation. It is None with fewer than two outcomes.
    """
    count = len(outcomes)
    if count < 2:
        return None
    mean = math.fsum(outcomes) / count
    if all(value in (0, 1) for value in outcomes):
        return sampling_half_width(mean, count)
    return 1.959964 * math.sqrt(math.fsum((value - mean) ** 2 for value in outcomes) / (count - 1) / count)


def paired_bootstrap(
    ours: Sequence[Mapping[str, float]],
    theirs: Sequence[Mapping[str, float]],
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference | None:
    """Return the difference of two methods on the same test examples by the paired bootstrap.

    See Efron and Tibshirani 1993, chapter 16. Each resample draws, within each seed, as many examples as the seed has,
    with replacement, and takes the outcomes of both methods on them. The interval is the percentile interval. p is
    twice the share of resamples on the less frequent side of zero, where one resample is added so that p is never 0.
    The seeds themselves are not resampled, so the interval does not cover the variation between seeds.

    Args:
        ours: outcomes of one method, one mapping of example ids to outcomes per seed.
        theirs: outcomes of the other method, with the same seeds in the same order.
        resamples: number of resamples.
        seed: seed of the resampling.

    Returns:
        None if the two have no example in common.
    """
    pairs = [[own[i] - other[i] for i in own if i in other] for own, other in zip(ours, theirs, strict=True)]
    parts = [numpy.array(part) for part in pairs if part]
    if not parts:
        return None
    generator, sums = numpy.random.default_rng(seed), numpy.zeros(resamples)
    for part in parts:  # it suffices to draw how often each distinct value occurs
        values, counts = numpy.unique(part, return_counts=True)
        sums += generator.multinomial(len(part), counts / len(part), size=resamples) @ values
    total = sum(map(len, parts))
    means, none = sums / total, 1e-12
    low, high = numpy.quantile(means, [0.025, 0.975])
    tail = 1 + min(int((means <= none).sum()), int((means >= -none).sum()))
    mean, p = math.fsum(float(part.sum()) for part in parts) / total, min(1.0, 2 * tail / (resamples + 1))
    between = interval([float(part.mean()) for part in parts])[1]
    return Difference(mean, float(low), float(high), p, total, len(parts), between)


def finals(method: Method, role: str) -> dict[int, float]:
    """Return the final score by seed, as the mean over the runs of a seed; seeds without a score are absent."""
    values = {seed: [role_scores(run.records, role).final for run in runs] for seed, runs in method.by_seed.items()}
    known = {seed: [value for value in scores if value is not None] for seed, scores in values.items()}
    return {seed: math.fsum(scores) / len(scores) for seed, scores in known.items() if scores}


def curve(method: Method, role: str) -> list[Point]:
    """Return the mean over seeds and its interval, for every round that all scored seeds have reached."""
    seeds: list[dict[int, float]] = []
    for runs in method.by_seed.values():
        scored: dict[int, list[float]] = {}
        for record in (record for run in runs for record in run.records):
            if math.isfinite(record.scores.get(role, math.nan)):
                scored.setdefault(record.round, []).append(record.scores[role])
        seeds += [{index: math.fsum(values) / len(values) for index, values in scored.items()}] if scored else []
    rounds: list[int] = sorted(set(seeds[0]).intersection(*seeds[1:])) if seeds else []
    return [point_of(index, [seed[index] for seed in seeds]) for index in rounds]


def point_of(index: int, values: Sequence[float]) -> Point:
    """Return a round's mean over seeds, with its interval if there are at least `FEWEST_SEEDS` of them."""
    return Point(index, *interval(values), tuple(values))
