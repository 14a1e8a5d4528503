"""The numbers of a comparison: the methods and seeds of one task, with paired differences. Nothing is written."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedcollm.config import RunConfig
from fedcollm.config.methods import CONTROLS, METHODS
from fedcollm.config.roles import MODELS, ROLES
from fedcollm.config.words import start_in_words
from fedcollm.messages import RoundRecord
from fedcollm.report.budgets import Sizes, Steps, sizes, steps
from fedcollm.report.formats import percent
from fedcollm.report.scores import Difference, interval, outcome_half_width, paired_bootstrap
from fedcollm.runs import directory as directories

#: Columns of scores: role to heading.
COLUMNS = {role: ROLES[role].short for role in ("slm", "clients", "llm")}
#: Methods that every other one is compared with: the controls with the same data, and FedCoLLM itself.
REFERENCES = ("closed_form", "fedavg_ce", "fedavg_ce_labelled", "fedcollm")

Outcomes = Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: the method in words.
        values: column (`slm`, `clients`, `llm`) to one value per seed.
        method: key of the method in `METHODS`; empty for the models before any training.
        differences: role and reference method to the difference of this method from the reference.
        sampling: column to the half-width of the 95% interval over test examples; empty with more than one seed.
        steps: optimizer steps per run, averaged over seeds.
    """

    name: str
    values: Mapping[str, Sequence[float]]
    method: str = ""
    differences: Mapping[str, Mapping[str, Difference]] = field(default_factory=dict[str, Mapping[str, Difference]])
    sampling: Mapping[str, float] = field(default_factory=dict[str, float])
    steps: Steps | None = None

    def mean(self, column: str) -> tuple[float, float | None] | None:
        """Return the mean over seeds and the half-width of its 95% interval; None if the column was never scored."""
        values = self.values.get(column, ())
        if not values:
            return None
        mean, half = interval(values)
        return mean, self.sampling.get(column) if half is None else half

    def text(self, column: str) -> str:
        """Return the mean ± the half-width of its 95% interval, as text; a dash if the column was never scored.

        >>> Row("", {"slm": [0.5, 0.7]}).text("slm")
        '0.600'
        """
        known = self.mean(column)
        if known is None:
            return "–"
        mean, half = known
        return f"{mean:.3f}" if half is None else f"{mean:.3f} ± {half:.3f}"

    def percent(self, column: str) -> str:
        """Return the same in percent, as a page shows it.

        >>> Row("", {"slm": [0.5, 0.6, 0.7]}).percent("slm")
        '60.0 ± 24.8%'
        """
        return percent(*(self.mean(column) or (None, None)))

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values, ready for JSON."""
        means = {column: known for column in COLUMNS if (known := self.mean(column))}
        return {
            "method": self.method or None,
            "name": self.name,
            "values": {column: list(values) for column, values in self.values.items() if values},
            "mean": {column: mean for column, (mean, _) in means.items()},
            "half_width": {column: half for column, (_, half) in means.items()},
            "differences": {
                role: {name: asdict(difference) for name, difference in by_reference.items()}
                for role, by_reference in self.differences.items()
            },
            "steps": asdict(self.steps) if self.steps else None,
        }


@dataclass(frozen=True)
class Compared:
    """The table of one task.

    Attributes:
        name: name of the task's configuration.
        rows: rows from top to bottom.
        seeds: all seeds of the comparison, finished or not.
        sizes: sizes of the data; None if no run is finished.
    """

    name: str
    rows: list[Row]
    seeds: list[int]
    sizes: Sizes | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values, ready for JSON."""
        sized = self.sizes.to_dict() if self.sizes else None
        return {"seeds": self.seeds, "sizes": sized, "rows": [row.to_dict() for row in self.rows]}


@dataclass(frozen=True)
class _Result:
    """Result of a method with one seed.

    Attributes:
        scores: role to score.
        outcomes: role to the outcome of each test example.
        steps: optimizer steps of all of its runs.
        sizes: sizes of the data.
    """

    scores: Mapping[str, float]
    outcomes: Mapping[str, Outcomes]
    steps: Steps
    sizes: Sizes


def tabulate(directory: Path, name: str, methods: Sequence[str], seeds: Sequence[int]) -> Compared:
    """Read the table of one task from its finished runs; unfinished runs are left out.

    Args:
        directory: directory of one task, which holds `METHOD/seed-S` or `METHOD/seed-S/client-K`.
        name: name of the task.
        methods: keys of `METHODS`.
        seeds: seeds of the runs.
    """
    results = {method: _results(directory / method, seeds) for method in methods}
    done = {method: found for method, found in results.items() if found}
    before = _zero_shot(directory, methods, seeds)
    rows = [before] if any(before.values.values()) else []
    rows += [_row(method, done) for method in METHODS if method in done]
    whole = [r.sizes for method, found in done.items() if not method.startswith("centralized") for r in found.values()]
    return Compared(name, rows, list(seeds), next(iter(whole), None))


def found_in(directory: Path) -> Compared | None:
    """Return the table of a directory that holds `METHOD/seed-S` for at least two methods; None for any other one."""
    methods = [name for name in METHODS if any((directory / name).glob("seed-*"))]
    names = {path.name for name in methods for path in (directory / name).glob("seed-*")}
    seeds = sorted(int(number) for name in names if (number := name.removeprefix("seed-")).isdecimal())
    if len(methods) < 2:
        return None
    compared = tabulate(directory, directory.resolve().name, methods, seeds)
    return compared if compared.rows else None


def _is_finished(config: RunConfig, records: Sequence[RoundRecord]) -> bool:
    return bool(records) and records[-1].round == config.federation.rounds


def _results(directory: Path, seeds: Sequence[int]) -> dict[int, _Result]:
    """Return the results of a method by seed, for the seeds that are finished."""
    found = {seed: _result(directory.name, directory / f"seed-{seed}") for seed in seeds}
    return {seed: result for seed, result in found.items() if result}


def _result(method: str, directory: Path) -> _Result | None:
    """Return a method's result in its last round, the mean over clients for standalone; None if it is not finished."""
    parts = [path for path in sorted(directory.glob("client-*")) or [directory] if path.is_dir()]
    if not parts or not all((part / directories.CONFIG).exists() for part in parts):
        return None
    configs = [directories.read_config(part) for part in parts]
    records = [directories.read_records(part) for part in parts]
    if not all(map(_is_finished, configs, records)) or (
        method == "standalone" and len(parts) < (configs[0].task.clients or 1)
    ):
        return None
    scores = mean_by_key([dict(one[-1].scores) for one in records])
    found: list[dict[str, dict[str, float]]] = [
        directories.read_json(part, directories.OUTCOMES) or {} for part in parts
    ]
    outcomes = {role: mean_by_key([one.get(role, {}) for one in found]) for role in (*MODELS, "control")}
    data = [directories.read_json(part, directories.DATA) for part in parts]
    if not all(data):
        return None
    total = sum((steps(*one) for one in zip(configs, data, strict=True)), start=Steps(0, 0))
    return _Result(_by_true_role(method, scores), _by_true_role(method, outcomes), total, sizes(data[0]))


def mean_by_key(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each key that all mappings have."""
    return {key: sum(part[key] for part in parts) / len(parts) for key in parts[0] if all(key in p for p in parts)}


def _by_true_role(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values under their true role: the one model of centralized training, its `slm`, may be the LLM.

    A control has neither model. Whatever is to be of use has to beat it, so its values are those of both roles.
    """
    if method in CONTROLS:
        return dict.fromkeys(MODELS, values["control"])
    if method == "centralized_llm":
        return {"llm": values["slm"]}
    return {"slm": values["slm"]} if method in ("standalone", "centralized") else dict(values)


def _row(method: str, done: Mapping[str, Mapping[int, _Result]]) -> Row:
    found = done[method]
    values = {column: [r.scores[column] for r in found.values() if column in r.scores] for column in COLUMNS}
    differences: dict[str, dict[str, Difference]] = {}
    for role in MODELS:
        for reference in REFERENCES:
            seeds = [seed for seed in found if seed in done.get(reference, {})]
            ours, theirs = ([done[name][seed].outcomes.get(role, {}) for seed in seeds] for name in (method, reference))
            if method != reference and (difference := paired_bootstrap(ours, theirs)):
                differences.setdefault(role, {})[reference] = difference
    total = sum((r.steps for r in found.values()), start=Steps(0, 0))
    average = Steps(round(total.client / len(found)), round(total.server / len(found)))
    return Row(METHODS[method].label, values, method, differences, _sampling(list(found.values())), average)


def _sampling(found: Sequence[_Result]) -> dict[str, float]:
    """Return the half-width over test examples by role; empty with several seeds, whose spread is shown instead."""
    if len(found) != 1:
        return {}
    halves = {role: outcome_half_width(list(values.values())) for role, values in found[0].outcomes.items()}
    return {role: half for role, half in halves.items() if half is not None}


def _zero_shot(directory: Path, methods: Sequence[str], seeds: Sequence[int]) -> Row:
    """Return the scores before any training; those of the LLM come from a method that loads it."""
    found: list[dict[str, float]] = []
    name = "zero-shot"
    for seed in seeds:
        scores: dict[str, float] = {}
        for method in methods:
            if method in ("standalone", "centralized_llm"):
                continue
            place = directory / method / f"seed-{seed}"
            if records := directories.read_records(place):
                name, scores = start_in_words(directories.read_config(place)), dict(records[0].scores) | scores
        found.append(scores)
    return Row(name, {column: [scores[column] for scores in found if column in scores] for column in COLUMNS})
