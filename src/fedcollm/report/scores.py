"""Scores of one run and of several seeds: best and final, mean and interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from fedcollm.messages import RoundRecord
from fedcollm.report.runs import Method

#: Roles that are scored, with the words that a reader knows them by, in the order of a report.
ROLES = {"slm": "Small model", "llm": "Large model", "clients": "Mean of clients"}


@dataclass(frozen=True)
class RoleScores:
    """Scores of one role over a run; None where it was never scored.

    Attributes:
        zero_shot: before any training (round 0).
        best: highest, over all scored rounds (chosen on the test examples).
        best_round: its round, the earliest of equals.
        final: of the last scored round.
        final_round: its round.
    """

    zero_shot: float | None = None
    best: float | None = None
    best_round: int | None = None
    final: float | None = None
    final_round: int | None = None


@dataclass(frozen=True)
class Point:
    """Mean over seeds of one role's score in one round; half_width of its 95% interval, if there is one."""

    round: int
    mean: float
    half_width: float | None = None


def role_scores(records: Sequence[RoundRecord], role: str) -> RoleScores:
    """Zero-shot, best and final score of a role; rounds without a finite score don't count."""
    scored = {r.round: r.scores[role] for r in records if math.isfinite(r.scores.get(role, math.nan))}
    if not scored:
        return RoleScores()
    best = max(scored, key=lambda index: scored[index])
    final = max(scored)
    return RoleScores(scored.get(0), scored[best], best, scored[final], final)


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half-width of its 95% interval by Student's t; None for fewer than two values."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, float(stdtrit(len(values) - 1, 0.975)) * math.sqrt(variance / len(values))


def sampling_half_width(score: float, examples: int) -> float:
    """Half-width of the 95% Wilson interval of an accuracy on this many test examples."""
    z = 1.959964
    return z / (1 + z * z / examples) * math.sqrt(score * (1 - score) / examples + z * z / (4 * examples**2))


def finals(method: Method, role: str) -> dict[int, float]:
    """Seed to final score, the mean over the seed's runs; seeds that were never scored are absent."""
    values = {seed: [role_scores(run.records, role).final for run in runs] for seed, runs in method.by_seed.items()}
    known = {seed: [value for value in scores if value is not None] for seed, scores in values.items()}
    return {seed: math.fsum(scores) / len(scores) for seed, scores in known.items() if scores}


def curve(method: Method, role: str) -> list[Point]:
    """Mean and interval over seeds, in every round that all scored seeds have reached."""
    seeds = []
    for runs in method.by_seed.values():
        scored: dict[int, list[float]] = {}
        for record in (record for run in runs for record in run.records):
            if math.isfinite(record.scores.get(role, math.nan)):
                scored.setdefault(record.round, []).append(record.scores[role])
        seeds += [{index: math.fsum(values) / len(values) for index, values in scored.items()}] if scored else []
    rounds = sorted(set(seeds[0]).intersection(*seeds[1:])) if seeds else []
    return [Point(index, *interval([seed[index] for seed in seeds])) for index in rounds]
