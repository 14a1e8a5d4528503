"""The numbers of runs: the summary, the comparison of methods, and the table behind each plot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcollm.config.roles import PARTS, ROLES
from fedcollm.messages import RoundRecord
from fedcollm.report.formats import byte_count, count, duration, metric_title, percent, points
from fedcollm.report.runs import Method, Run, metric_of, read_run
from fedcollm.report.scores import RoleScores, curve, finals, interval, role_scores

#: Key of `RoundRecord.losses` to its name in a report.
LOSSES: dict[str, str] = {
    "client": "Clients: CE",
    "slm": "Small model: CE",
    "llm": "Large model: CE",
    "kl": "KL divergence",
}
#: Bytes per value by dtype.
BYTES: dict[str, int] = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Summary:
    """One run in numbers.

    Attributes:
        name: the configuration's name.
        seed: the run's seed.
        rounds_done: number of finished rounds of training.
        rounds_planned: number of rounds that the configuration asks for.
        scores: role to its scores, for the roles that were scored.
        bytes_up: bytes that a client sends per round (the largest of all rounds).
        bytes_down: bytes that a client receives per round (the largest of all rounds).
        full_model_bytes: size of the whole SLM in its own dtype; None if unknown.
        adapter_share: parameters of the adapter / parameters of the SLM's base; None if unknown, or if the run is a
            control, which sends no adapter.
        seconds: part to its seconds in all rounds together.
        peak_memory_bytes: highest resident memory of the process; 0 if unknown.
    """

    name: str
    seed: int
    rounds_done: int
    rounds_planned: int
    scores: dict[str, RoleScores] = field(default_factory=dict[str, RoleScores])
    bytes_up: int = 0
    bytes_down: int = 0
    full_model_bytes: int | None = None
    adapter_share: float | None = None
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    peak_memory_bytes: int = 0


@dataclass(frozen=True)
class Table:
    """A table of texts, whose first column names the row."""

    caption: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def summary(directory: Path) -> Summary:
    """Return the numbers of the run in a directory.

    Raises:
        UserError: the directory holds no run, or one of its files is malformed.
    """
    return summarize(read_run(directory))


def summarize(run: Run) -> Summary:
    """Return the numbers of a run."""
    scores = {role: role_scores(run.records, role) for role in ROLES}
    return Summary(
        name=run.config.name,
        seed=run.config.seed,
        rounds_done=max((record.round for record in run.records), default=0),
        rounds_planned=run.config.federation.rounds,
        scores={role: value for role, value in scores.items() if value.final is not None},
        bytes_up=max((record.bytes_up for record in run.records), default=0),
        bytes_down=max((record.bytes_down for record in run.records), default=0),
        full_model_bytes=full_model_bytes(run.environment),
        adapter_share=adapter_share(run.environment) if run.config.control is None else None,
        seconds={part: math.fsum(record.seconds.get(part, 0.0) for record in run.records) for part in PARTS},
        peak_memory_bytes=max((record.peak_memory_bytes for record in run.records), default=0),
    )


def full_model_bytes(environment: dict[str, Any], role: str = "slm") -> int | None:
    """Return the bytes of a role's whole base model in its own dtype; None if `environment.json` does not tell."""
    parameters = environment.get("parameters", {}).get(role, {}).get("base")
    if not parameters:
        return None
    return parameters * BYTES.get(environment.get("dtype", {}).get(role, "float32"), 4)


def adapter_share(environment: dict[str, Any], role: str = "slm") -> float | None:
    """Return the parameters of a role's adapter as a share of its base's; None if `environment.json` does not tell."""
    counts = environment.get("parameters", {}).get(role, {})
    return counts["adapter"] / counts["base"] if counts.get("base") else None


def comparison(methods: Sequence[Method]) -> Table:
    """Return final scores, traffic and time of every method, with differences from the first one."""
    always = ("slm", "llm", "clients")
    roles = [role for role in ROLES if role in always or any(finals(method, role) for method in methods)]
    header = (
        "Method",
        *(ROLES[role].label for role in roles),
        f"{ROLES['slm'].label} − {methods[0].label}’s",
        "Seeds",
        "Rounds",
        "Sent per client and round",
        "Time per seed",
    )
    caption = (
        "Final scores by method: mean ± half-width of the 95% interval over seeds (Student’s t) from three seeds on; "
        "differences are paired by seed, in percentage points"
    )
    return Table(caption, header, [_comparison_row(method, methods[0], roles) for method in methods])


def _comparison_row(method: Method, main: Method, roles: Sequence[str]) -> tuple[str, ...]:
    summaries = [summarize(run) for run in method.runs]
    own, reference = finals(method, "slm"), finals(main, "slm")
    paired = [own[seed] - reference[seed] for seed in own if seed in reference]
    done = sorted({value.rounds_done for value in summaries})
    seconds = math.fsum(math.fsum(value.seconds.values()) for value in summaries) / len(method.by_seed)
    return (
        method.label,
        *(
            percent(*interval(list(values.values()))) if values else "–"
            for values in (finals(method, role) for role in roles)
        ),
        points(*interval(paired)) if paired and method is not main else "–",
        count(len(method.by_seed)),
        f"{done[0]}" if len(done) == 1 else f"{done[0]}–{done[-1]}",
        byte_count(max(value.bytes_up for value in summaries)) if method.federated else "–",
        duration(seconds),
    )


def score_table(methods: Sequence[Method]) -> Table:
    """Return scores by round: all roles of the first method, the small models of the others, and ε under privacy."""
    curves = [(names.label, curve(methods[0], role)) for role, names in ROLES.items()]
    curves += [(method.label, curve(method, "slm")) for method in methods[1:]]
    columns = [(label, {point.round: point for point in points}) for label, points in curves if points]
    rounds = sorted({index for _, points in columns for index in points})
    spent = {record.round: record.epsilon for record in methods[0].runs[0].records if record.epsilon is not None}
    rows = [
        (
            str(index),
            *(
                percent(points[index].mean, points[index].half_width) if index in points else "–"
                for _, points in columns
            ),
            *([f"{spent[index]:.3g}" if index in spent else "–"] if spent else []),
        )
        for index in rounds
    ]
    header = ("Round", *(label for label, _ in columns), *(["ε spent"] if spent else []))
    return Table(f"{metric_title(metric_of(methods))} by round", header, rows)


def loss_table(records: Sequence[RoundRecord]) -> Table:
    """Return the training losses by round, for those that were recorded."""
    kinds = [kind for kind in LOSSES if any(kind in record.losses for record in records)]
    rows = [
        (str(record.round), *(f"{record.losses[kind]:.3f}" if kind in record.losses else "–" for kind in kinds))
        for record in records
        if record.losses
    ]
    return Table("Training loss by round, in nats", ("Round", *(LOSSES[kind] for kind in kinds)), rows)


def time_table(records: Sequence[RoundRecord]) -> Table:
    """Return the seconds by round and part."""
    rows: list[tuple[str, ...]] = []
    for record in records:
        values = [record.seconds.get(part, 0.0) for part in PARTS]
        rows.append((str(record.round), *(f"{value:.1f}" for value in (*values, math.fsum(values)))))
    return Table("Seconds by round", ("Round", *PARTS.values(), "Total"), rows)


def byte_table(records: Sequence[RoundRecord], full: int | None) -> Table:
    """Return the traffic of one client by round."""
    total = 0
    rows: list[tuple[str, ...]] = []
    for index, record in enumerate((record for record in records if record.round > 0), start=1):
        total += record.bytes_up + record.bytes_down
        whole = byte_count(2 * full * index) if full else "–"
        rows.append(
            (str(record.round), byte_count(record.bytes_up), byte_count(record.bytes_down), byte_count(total), whole)
        )
    header = ("Round", "Up", "Down", "Up and down so far", "With the full model")
    return Table("Bytes that one client sends and receives, by round", header, rows)
