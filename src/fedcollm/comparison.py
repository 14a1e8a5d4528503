"""The paper's table: every baseline and control as a configuration of the same loop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcollm import run_directory as directories
from fedcollm.config import RunConfig
from fedcollm.errors import UserError
from fedcollm.messages import RoundRecord
from fedcollm.report.scores import interval
from fedcollm.runner import rounds

#: Where nothing leaves the one place that the data is in, there is nobody to hide it from.
_ALONE: Mapping[str, Any] = {"secure_aggregation": False, "privacy": None}


def _with(config: RunConfig, **overrides: Mapping[str, Any]) -> RunConfig:
    """A copy with some keys of some sections replaced."""
    sections = {name: getattr(config, name).model_copy(update=dict(values)) for name, values in overrides.items()}
    return config.model_copy(update=sections)


def _no_distillation(config: RunConfig) -> RunConfig:
    return _with(config, server={"epochs": 0})


def _weights(config: RunConfig, weight: float, llm_weight: float) -> RunConfig:
    distillation = config.server.distillation.model_copy(update={"weight": weight, "llm_weight": llm_weight})
    return _with(config, server={"distillation": distillation})


def _pooled(config: RunConfig, with_public: bool) -> RunConfig:
    partition = config.task.partition.model_copy(update={"kind": "pooled", "with_public": with_public})
    alone = _with(config, task={"partition": partition}, federation=_ALONE)
    return _no_distillation(alone)


def fedcollm(config: RunConfig) -> dict[str, RunConfig]:
    """The method itself."""
    return {"": config}


def fedavg(config: RunConfig) -> dict[str, RunConfig]:
    """FedAvg (McMahan et al. 2017): no distillation."""
    return {"": _no_distillation(config)}


def fedavg_ce(config: RunConfig) -> dict[str, RunConfig]:
    """FedAvg, and plain cross-entropy on D_a for both roles (λ = 0): what labelled public data gives alone.

    Its LLM is the control "LLM on D_a only": with λ = 0 nothing of the clients reaches it.
    """
    return {"": _weights(config, 0.0, 0.0)}


def standalone(config: RunConfig) -> dict[str, RunConfig]:
    """Each client alone: as many runs as clients."""
    alone = _with(_no_distillation(config), federation=_ALONE)
    return {f"client-{k}": _with(alone, federation={"participants": [str(k)]}) for k in range(config.task.clients)}


def llm2slm(config: RunConfig) -> dict[str, RunConfig]:
    """One-way distillation from the LLM on D_a, no federation."""
    one_way = _weights(config, config.server.distillation.weight or 1.0, 0.0)
    return {"": _with(one_way, federation={"participants": [], "privacy": None})}


def centralized(config: RunConfig) -> dict[str, RunConfig]:
    """The SLM tuned on all private data in one place."""
    return {"": _pooled(config, with_public=False)}


def centralized_llm(config: RunConfig) -> dict[str, RunConfig]:
    """The LLM tuned on all private data and the labelled part of D_a in one place, with the server's learning rate."""
    server = {"learning_rate": config.server.learning_rate, "batch_size": config.server.batch_size}
    return {"": _pooled(_with(config.model_copy(update={"slm": config.llm}), client=server), with_public=True)}


METHODS: Mapping[str, Callable[[RunConfig], dict[str, RunConfig]]] = {
    method.__name__: method
    for method in (fedcollm, fedavg, fedavg_ce, standalone, llm2slm, centralized, centralized_llm)
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: the method, in words.
        values: column (`slm`, `clients`, `llm`) to one value a seed.
    """

    name: str
    values: Mapping[str, Sequence[float]]

    def text(self, column: str) -> str:
        """Mean ± half width of the 95 % confidence interval (Student's t over seeds); a dash if empty."""
        values = self.values.get(column, ())
        if not values:
            return "–"
        mean, half = interval(values)
        return f"{mean:.3f}" if half is None else f"{mean:.3f} ± {half:.3f}"


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        directory: holds METHOD/seed-S run directories.
        rows: the table, best read top to bottom.
        seeds: the seeds.
    """

    directory: Path
    rows: list[Row]
    seeds: list[int]

    def to_markdown(self) -> str:
        """The table in Markdown."""
        lines = ["| method | SLM | clients' SLMs after tuning | LLM |", "|---|---|---|---|"]
        lines += [
            f"| {row.name} | {row.text('slm')} | {row.text('clients')} | {row.text('llm')} |" for row in self.rows
        ]
        return "\n".join(lines) + "\n"


def plan(config: RunConfig, methods: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, RunConfig]]:
    """Relative run directory and configuration of every run of a comparison, seed by seed.

    Raises:
        UserError: unknown method.
    """
    for method in methods:
        if method not in METHODS:
            raise UserError(f"--methods: unknown method {method!r}. Known: {', '.join(METHODS)}")
    runs = []
    for seed in seeds:
        for method in methods:
            seeded = config.model_copy(update={"seed": seed, "name": method})
            runs += [(f"{method}/seed-{seed}/{part}".rstrip("/"), c) for part, c in METHODS[method](seeded).items()]
    return runs


def comparing(
    config: RunConfig, directory: Path, methods: Sequence[str], seeds: Sequence[int]
) -> Iterator[tuple[str, RoundRecord]]:
    """Do every run that is not there yet, going on with the one that was interrupted; yield records as they come."""
    for place, run_config in plan(config, methods, seeds):
        path = directory / place
        exists = (path / directories.CONFIG).exists()
        records = directories.read_records(path)
        if (
            exists
            and directories.read_config(path) == run_config
            and records
            and records[-1].round == run_config.federation.rounds
        ):
            yield place, records[-1]
            continue
        for record in rounds(run_config, path, resume=exists):
            yield place, record


def compare(
    config: RunConfig,
    out: str | Path | None = None,
    *,
    methods: Sequence[str] = tuple(METHODS),
    seeds: Sequence[int] = (0,),
) -> Comparison:
    """Run every method with every seed, and tabulate.

    Args:
        config: the method's own configuration; the others are derived from it.
        out: directory for all runs; by default `runs/compare-NAME`. Finished runs in it are not repeated.
        methods: names from `METHODS`.
        seeds: of data split, adapters and order.
    """
    directory = Path(out) if out is not None else Path("runs") / f"compare-{config.name}"
    for _ in comparing(config, directory, methods, seeds):
        pass
    return tabulate(directory, methods, seeds)


def tabulate(directory: Path, methods: Sequence[str], seeds: Sequence[int]) -> Comparison:
    """Read the table off finished runs."""
    final = {method: [_final(directory / method / f"seed-{seed}") for seed in seeds] for method in methods}
    rows = []
    if zero := [_zero_shot(directory, methods, seed) for seed in seeds]:
        rows.append(_row("zero-shot", zero))
    names = {
        "standalone": "standalone (mean of clients)",
        "fedavg": "FedAvg",
        "fedavg_ce": "FedAvg + CE on D_a (LLM: D_a only)",
        "llm2slm": "LLM2SLM (one-way, no federation)",
        "fedcollm": "FedCoLLM",
        "centralized": "centralized SLM (private data)",
        "centralized_llm": "centralized LLM (private + D_a)",
    }
    for method, name in names.items():
        if method in final:
            rows.append(_row(name, final[method]))
    return Comparison(directory, rows, list(seeds))


def _row(name: str, scores: Sequence[Mapping[str, float]]) -> Row:
    return Row(name, {column: [s[column] for s in scores if column in s] for column in ("slm", "clients", "llm")})


def _zero_shot(directory: Path, methods: Sequence[str], seed: int) -> dict[str, float]:
    """Scores before any training; the LLM's from whichever method loads it."""
    scores: dict[str, float] = {}
    for method in methods:
        if method in ("standalone", "centralized_llm"):
            continue
        records = directories.read_records(directory / method / f"seed-{seed}")
        scores = dict(records[0].scores) | scores if records else scores
    return scores


def _final(directory: Path) -> dict[str, float]:
    """Scores of a method's last round; the mean over its runs if it has one a client."""
    method = directory.parent.name
    parts = sorted(directory.glob("client-*")) or [directory]
    scores = [dict(directories.read_records(part)[-1].scores) for part in parts]
    mean = {role: sum(s[role] for s in scores) / len(scores) for role in scores[0]}
    if method == "centralized_llm":
        return {"llm": mean["slm"]}
    return {"slm": mean["slm"]} if method in ("standalone", "centralized") else mean
