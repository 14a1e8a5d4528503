"""The paper's tables: tasks x methods x seeds, every run a configuration of the same loop."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from fedcollm.config import RunConfig
from fedcollm.config.loading import explain
from fedcollm.config.methods import METHODS, PAPER
from fedcollm.data.catalogue import base_models
from fedcollm.errors import UserError
from fedcollm.experiments.hardware import fitting_jobs
from fedcollm.experiments.workers import Failed, Job, in_processes, in_this_process, raise_for
from fedcollm.messages import RoundRecord
from fedcollm.models.adapters import resolve_device
from fedcollm.report.compared import Compared, Row, tabulate
from fedcollm.report.compared_tables import all_tables
from fedcollm.report.markup import to_latex, to_markdown
from fedcollm.runs import directory as directories
from fedcollm.runs.build import Inputs
from fedcollm.runs.estimate import check
from fedcollm.storage import write_atomically, writing

#: Folder of what the runs of a comparison have in common.
SHARED = ".shared"

Jobs = int | Literal["auto"]


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        directory: holds METHOD/seed-S run directories, of several tasks one folder a task with these.
        tasks: one table a task.
    """

    directory: Path
    tasks: list[Compared]

    @property
    def rows(self) -> list[Row]:
        """The table of the first task, best read top to bottom."""
        return self.tasks[0].rows

    @property
    def seeds(self) -> list[int]:
        """The seeds."""
        return self.tasks[0].seeds

    def to_markdown(self) -> str:
        """All tables in Markdown."""
        return to_markdown(all_tables(self.tasks))

    def to_latex(self) -> str:
        """All tables in LaTeX, for booktabs."""
        return to_latex(all_tables(self.tasks))

    def to_dict(self) -> dict[str, Any]:
        """Task to all of its numbers, as JSON values."""
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
    """What is to be compared, and where.

    Attributes:
        directory: for all runs; finished runs in it are not repeated.
        configs: the method's own configuration, one a task; the other methods are derived from it.
        methods: names from `METHODS`.
        seeds: of data split, adapters and order.
        inputs: what every run is given beside its configuration; only runs in this process can have any.
    """

    directory: Path
    configs: Sequence[RunConfig]
    methods: Sequence[str]
    seeds: Sequence[int]
    inputs: Inputs = Inputs()

    def __post_init__(self) -> None:
        names = [config.name for config in self.configs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"two configurations with the name {twice!r}: set `name` in one of them.")
        if unknown := next((method for method in self.methods if method not in METHODS), None):
            raise UserError(f"--methods: unknown method {unknown!r}. Known: {', '.join(METHODS)}")

    def home(self, config: RunConfig) -> Path:
        """Directory of one task."""
        return self.directory / config.name if len(self.configs) > 1 else self.directory

    def jobs(self) -> list[Job]:
        """Every run, task by task and seed by seed."""
        found = []
        for config in self.configs:
            home = self.home(config)
            for place, run_config in plan(config, self.methods, self.seeds):
                path = home / place
                name = path.relative_to(self.directory).as_posix()
                inputs = replace(self.inputs, shared=self.directory / SHARED)
                found.append(Job(name, run_config, path, inputs))
        return found

    def tabulate(self) -> Comparison:
        """The tables of what is finished."""
        tasks = [tabulate(self.home(config), config.name, self.methods, self.seeds) for config in self.configs]
        return Comparison(self.directory, tasks)


def plan(config: RunConfig, methods: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, RunConfig]]:
    """Directory, relative to the task's, and configuration of every run of one task, seed by seed.

    Raises:
        UserError: a method that does not fit the configuration.
    """
    runs = []
    for seed in seeds:
        for method in methods:
            seeded = config.model_copy(update={"seed": seed, "name": method})
            try:
                parts = METHODS[method].configure(seeded)
            except ValidationError as error:
                raise UserError(f"--methods: {method} does not fit this configuration: {explain(error)}") from error
            runs += [(f"{method}/seed-{seed}/{part}".rstrip("/"), c) for part, c in parts.items()]
    return runs


def default_directory(configs: Sequence[RunConfig]) -> Path:
    """`runs/compare-NAME`, or `runs/compare-NAME-NAME`."""
    return Path("runs") / "-".join(["compare", *(config.name for config in configs)])


def comparing(wanted: Plan, failed: list[Failed], jobs: Jobs = 1) -> Iterator[tuple[str, RoundRecord]]:
    """Do every run that is not there yet, going on with those that were interrupted; yield records as they come.

    Args:
        wanted: the runs.
        failed: gets the runs that fail; the others go on.
        jobs: runs at once.
    """
    open_jobs: list[Job] = []
    for job in wanted.jobs():
        if finished(job):
            yield job.place, directories.read_records(job.directory)[-1]
        else:
            open_jobs.append(job)
    if wanted.inputs != Inputs() and jobs != 1:
        raise UserError(f"jobs {jobs!r}: runs with a modality or data of your own take place in this process. Set 1.")
    count = min(_number(wanted.configs, jobs), len(open_jobs))
    if count > 1:
        _make_bases([job.config for job in open_jobs])
        yield from in_processes(open_jobs, count, failed)
    else:
        yield from in_this_process(open_jobs, failed)


def finished(job: Job) -> bool:
    """Whether the whole of a run is on disk, with what its statistics need."""
    if not all((job.directory / name).exists() for name in (directories.CONFIG, directories.OUTCOMES)):
        return False
    records = directories.read_records(job.directory)
    whole = bool(records) and records[-1].round == job.config.federation.rounds
    return whole and directories.read_config(job.directory) == job.config


def _number(configs: Sequence[RunConfig], jobs: Jobs) -> int:
    """How many runs go at once."""
    if jobs != "auto":
        return jobs
    cuda = any(resolve_device(config.device).type == "cuda" for config in configs)
    return fitting_jobs([check(config).memory_bytes for config in configs], cuda)


def _make_bases(configs: Sequence[RunConfig]) -> None:
    """Convert and prune base models once, before processes that would all do it; the run itself tells of errors."""
    for config in configs:
        for model in (config.slm, config.llm):
            with contextlib.suppress(UserError):
                base_models(config.task).prepare(model)


def compare(
    config: RunConfig | Sequence[RunConfig],
    out: str | Path | None = None,
    *,
    methods: Sequence[str] = tuple(PAPER),
    seeds: Sequence[int] = (0,),
    jobs: Jobs = 1,
    inputs: Inputs = Inputs(),
) -> Comparison:
    """Run every method with every seed on every task, and tabulate.

    Args:
        config: the method's own configuration, or one a task; the other methods are derived from it.
        out: directory for all runs; by default `runs/compare-NAME`. Finished runs in it are not repeated.
        methods: names from `METHODS`.
        seeds: of data split, adapters and order.
        jobs: runs at once, each in a process of its own; `auto`: as many as memory and cores allow.
        inputs: a modality and data of your own, for all runs; needs `jobs=1`.

    Raises:
        UserError: runs failed, all others being finished then.
        RuntimeError: the same, where a fault of fedcollm is the reason.
    """
    configs = [config] if isinstance(config, RunConfig) else list(config)
    wanted = Plan(Path(out) if out is not None else default_directory(configs), configs, methods, seeds, inputs)
    failed: list[Failed] = []
    for _ in comparing(wanted, failed, jobs):
        pass
    raise_for(failed)
    return wanted.tabulate()
