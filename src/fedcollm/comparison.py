"""The paper's table: every baseline and control as a configuration of the same loop."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from fedcollm import run_directory as directories
from fedcollm.config import RunConfig
from fedcollm.errors import UserError
from fedcollm.loading import explain
from fedcollm.messages import RoundRecord
from fedcollm.methods import METHODS, NAMES, PAPER
from fedcollm.report.scores import interval
from fedcollm.runner import rounds


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
        UserError: unknown method, or one that does not fit the configuration.
    """
    for method in methods:
        if method not in METHODS:
            raise UserError(f"--methods: unknown method {method!r}. Known: {', '.join(METHODS)}")
    runs = []
    for seed in seeds:
        for method in methods:
            seeded = config.model_copy(update={"seed": seed, "name": method})
            try:
                parts = METHODS[method](seeded)
            except ValidationError as error:
                raise UserError(f"--methods: {method} does not fit this configuration: {explain(error)}") from error
            runs += [(f"{method}/seed-{seed}/{part}".rstrip("/"), c) for part, c in parts.items()]
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
    methods: Sequence[str] = tuple(PAPER),
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
    rows += [_row(name, final[method]) for method, name in NAMES.items() if method in final]
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
