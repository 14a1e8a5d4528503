"""Reproduce the paper's tables: every task, method and seed is one run, a configuration of the same loop."""

import contextlib
import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.config.loading import explain
from fedcollm.config.methods import CONTROLS, METHODS, PAPER, fits
from fedcollm.data.catalogue import base_models
from fedcollm.data.pool import Pool
from fedcollm.errors import UserError
from fedcollm.experiments.bases import refuse_other_bases
from fedcollm.experiments.hardware import fitting_jobs
from fedcollm.experiments.workers import Failed, Job, in_processes, in_this_process, raise_for
from fedcollm.messages import RoundRecord
from fedcollm.modalities.base import Modality
from fedcollm.models.adapters import resolve_device
from fedcollm.progress import say
from fedcollm.report.compared import Compared, Row, tabulate
from fedcollm.report.compared_tables import all_tables
from fedcollm.report.markup import to_latex, to_markdown
from fedcollm.runs import directory as directories
from fedcollm.runs.build import Inputs
from fedcollm.runs.estimate import check
from fedcollm.runs.resolve import resolved
from fedcollm.runs.shrink import shrunk
from fedcollm.storage import write_atomically, writing

#: Folder of the results that the runs of a comparison have in common.
SHARED = ".shared"

Jobs = int | Literal["auto"]


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        directory: directory with the runs in METHOD/seed-S; for several tasks, in TASK/METHOD/seed-S.
        tasks: one table per task.
    """

    directory: Path
    tasks: list[Compared]

    @property
    def rows(self) -> list[Row]:
        """Return the rows of the first task's table."""
        return self.tasks[0].rows

    @property
    def seeds(self) -> list[int]:
        """Return the seeds."""
        return self.tasks[0].seeds

    def to_markdown(self) -> str:
        """Return all tables in Markdown."""
        return to_markdown(all_tables(self.tasks))

    def to_latex(self) -> str:
        """Return all tables in LaTeX, which needs the package booktabs."""
        return to_latex(all_tables(self.tasks))

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers of each task by its name, as plain values, ready for JSON."""
        return {compared.name: compared.to_dict() for compared in self.tasks}

    def write(self) -> None:
        """Write `table.md`, `table.tex` and `comparison.json` into the directory."""
        texts = {
            "table.md": self.to_markdown(),
            "table.tex": self.to_latex(),
            "comparison.json": json.dumps(self.to_dict(), indent=1) + "\n",
        }
        with writing(self.directory):
            for name, text in texts.items():
                write_atomically(self.directory / name, text)


@dataclass(frozen=True)
class Plan:
    """The runs of a comparison.

    Attributes:
        directory: directory of all runs; finished runs in it are not repeated.
        configs: the configuration of FedCoLLM for each task; those of the other methods are derived from it.
        methods: names from `METHODS`.
        seeds: one run of each method per seed, which decides data split, initial adapters and batch order.
        inputs: what every run is given in addition to its configuration; only runs in this process can take any.
    """

    directory: Path
    configs: Sequence[RunConfig]
    methods: Sequence[str]
    seeds: Sequence[int]
    inputs: Inputs = Inputs()

    def __post_init__(self) -> None:
        names = [config.name for config in self.configs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"two configurations have the name {twice!r}. Change `name` in one of them.")
        if unknown := [method for method in self.methods if method not in METHODS]:
            near = difflib.get_close_matches(unknown[0], METHODS, 3)
            hint = f"Did you mean {' or '.join(near)}? All methods" if near else "The methods"
            raise UserError(f"--methods: unknown method {unknown[0]!r}. {hint}: {', '.join(METHODS)}.")

    def home(self, config: RunConfig) -> Path:
        """Return the directory of one task's runs."""
        return self.directory / config.name if len(self.configs) > 1 else self.directory

    def jobs(self) -> list[Job]:
        """Return every run, task by task and seed by seed."""
        found: list[Job] = []
        for config in self.configs:
            home = self.home(config)
            for place, run_config in plan(config, self.methods, self.seeds, self.inputs.pool):
                path = home / place
                name = path.relative_to(self.directory).as_posix()
                inputs = replace(self.inputs, shared=self.directory / SHARED)
                found.append(Job(name, run_config, path, inputs))
        return found

    def left_out(self) -> list[str]:
        """Return a sentence for each key that a method is known for and has no use for in a task's configuration."""
        return [
            f"{config.name}: {told}"
            for config in self.configs
            for name in self.methods
            for told in unused(name, config)
        ]

    def tabulate(self) -> Comparison:
        """Return the tables of all finished runs."""
        tasks = [tabulate(self.home(config), config.name, self.methods, self.seeds) for config in self.configs]
        return Comparison(self.directory, tasks)


def plan(
    config: RunConfig, methods: Sequence[str], seeds: Sequence[int], pool: Pool | None = None
) -> list[tuple[str, RunConfig]]:
    """Plan the runs of one task, seed by seed.

    Args:
        config: the configuration of FedCoLLM.
        methods: names from `METHODS`.
        seeds: one run of each method per seed.
        pool: the user's own data; it is read only if the number of clients follows from it.

    Returns:
        For each run, its directory relative to that of the task, and its configuration.

    Raises:
        UserError: a method can't be derived from the configuration.
    """
    runs: list[tuple[str, RunConfig]] = []
    config, _ = resolved(config, pool)
    for seed in seeds:
        for method in methods:
            seeded = config.model_copy(update={"seed": seed, "name": method})
            try:
                parts = METHODS[method].configure(seeded)
            except ValidationError as error:
                raise UserError(f"--methods: {method} does not fit this configuration: {explain(error)}") from error
            runs += [(f"{method}/seed-{seed}/{part}".rstrip("/"), c) for part, c in parts.items()]
    return runs


def unused(name: str, config: RunConfig) -> list[str]:
    """Return a sentence for each of a method's changes that is not in effect in the configuration that it gives."""
    sentences: list[str] = []
    for key, value in METHODS[name].changes.items():
        for given in METHODS[name].configure(config).values():
            try:
                if changed(given, {key: value}) != given:
                    sentences.append(f"{name} runs without {key} {value}")
            except ValidationError as error:
                reasons = explain(error).splitlines()[1:]
                sentences.append(f"{name} runs without {key}, because {'; '.join(map(str.strip, reasons))}")
    return sentences


def default_methods(configs: Sequence[RunConfig], modality: Modality | None = None) -> list[str]:
    """Return the methods of the paper and the controls, without controls that don't suit every task.

    Free answers and example-level privacy have no control in closed form, nor has a modality without `evidence`.

    Args:
        configs: the configuration of each task.
        modality: the user's own modality, if there is one.
    """
    has_rows = modality is None or type(modality).evidence is not Modality.evidence
    suited = {name for name in CONTROLS if has_rows and all(fits(name, config) for config in configs)}
    return [name for name in PAPER if name in suited or name not in CONTROLS]


def default_directory(configs: Sequence[RunConfig]) -> Path:
    """Return `runs/compare-NAME`, with one name per task."""
    return Path("runs") / "-".join(["compare", *(config.name for config in configs)])


def comparing(wanted: Plan, failed: list[Failed], jobs: Jobs = 1) -> Iterator[tuple[str, RoundRecord]]:
    """Do every run that is not finished, and resume those that were interrupted.

    Args:
        wanted: the runs of the comparison.
        failed: list to which runs that fail are added; the other runs go on.
        jobs: number of runs at the same time.

    Yields:
        The name of a run and the record of its round, after each round; of a finished run, its last record.

    Raises:
        UserError: as in `refuse_other_bases`, or runs with the user's own modality or data would need processes.
    """
    done, open_jobs = list[Job](), list[Job]()
    for job in wanted.jobs():
        (done if finished(job) else open_jobs).append(job)
    for sentence in wanted.left_out():
        say(sentence)
    refuse_other_bases(done, open_jobs)
    for job in done:
        yield job.place, directories.read_records(job.directory)[-1]
    if wanted.inputs != Inputs() and jobs != 1:
        raise UserError(f"jobs {jobs!r}: runs with your own modality or data must be in this process. Set jobs=1.")
    count = min(_job_count([*wanted.configs, *(job.config for job in open_jobs)], jobs), len(open_jobs))
    if count > 1:
        _prepare_bases([job.config for job in open_jobs])
        yield from in_processes(open_jobs, count, failed)
    else:
        yield from in_this_process(open_jobs, failed)


def finished(job: Job) -> bool:
    """Return whether a run is complete on disk, including the outcomes that its statistics need."""
    if not all((job.directory / name).exists() for name in (directories.CONFIG, directories.OUTCOMES)):
        return False
    records = directories.read_records(job.directory)
    whole = bool(records) and records[-1].round == job.config.federation.rounds
    return whole and directories.read_config(job.directory) == job.config


def _job_count(configs: Sequence[RunConfig], jobs: Jobs) -> int:
    """Return the number of runs at the same time."""
    if jobs != "auto":
        return jobs
    cuda = any(resolve_device(config.device).type == "cuda" for config in configs)
    distinct = {
        str((config.task, config.statistics)): config for config in reversed(configs)
    }  # the rest differs little
    return fitting_jobs([check(config).memory_bytes for config in distinct.values()], cuda)


def _prepare_bases(configs: Sequence[RunConfig]) -> None:
    """Convert and cut base models once, before several processes would all do it. Errors are left to the runs."""
    for config in configs:
        for model in (config.slm, config.llm):
            with contextlib.suppress(UserError):
                base_models(config.task).prepare(shrunk(model, resolve_device(config.device)))


def compare(
    config: RunConfig | Sequence[RunConfig],
    out: str | Path | None = None,
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    jobs: Jobs = 1,
    inputs: Inputs = Inputs(),
) -> Comparison:
    """Run every method with every seed on every task, and return the tables.

    Args:
        config: the configuration of FedCoLLM, or one per task; those of the other methods are derived from it.
        out: directory for all runs; by default `runs/compare-NAME`. Finished runs in it are not repeated.
        methods: names from `METHODS`; by default those of `default_methods`.
        seeds: one run of each method per seed, which decides data split, initial adapters and batch order.
        jobs: number of runs at the same time, each in a process of its own; `auto` for as many as memory and cores
            allow.
        inputs: your own modality and data for all runs; needs `jobs=1`.

    Raises:
        UserError: some runs failed; all others are finished by then.
        RuntimeError: some runs failed because of a fault of fedcollm; all others are finished by then.
    """
    configs = [config] if isinstance(config, RunConfig) else list(config)
    directory = Path(out) if out is not None else default_directory(configs)
    chosen = default_methods(configs, inputs.modality) if methods is None else methods
    wanted = Plan(directory, configs, chosen, seeds, inputs)
    failed: list[Failed] = []
    for _ in comparing(wanted, failed, jobs):
        pass
    raise_for(failed)
    return wanted.tabulate()
