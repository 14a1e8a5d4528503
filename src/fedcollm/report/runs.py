"""Find run directories, read them, and group them into methods, whose runs differ only in their seed."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fedcollm.config import RunConfig
from fedcollm.config.methods import METHODS
from fedcollm.config.roles import MODELS
from fedcollm.errors import UserError
from fedcollm.messages import RoundRecord
from fedcollm.modalities.exhibits import Answer, Exhibit
from fedcollm.report.formats import natural
from fedcollm.runs.directory import (
    CONFIG,
    CONFUSION,
    CONFUSION_START,
    DATA,
    ENVIRONMENT,
    EXHIBITS_START,
    PERSONAL,
    PROFILE,
    ROUNDS,
    read_config,
    read_json,
    read_records,
)
from fedcollm.runs.exhibit_files import read_exhibits

if TYPE_CHECKING:
    from fedcollm.data.audit.profiles import Profile

_SEED = re.compile("seed-[0-9]+")

#: Role to rows of true label, predicted label and number of examples.
Confusion: TypeAlias = Mapping[str, Sequence[tuple[str, str, int]]]


@dataclass(frozen=True)
class Run:
    """What one run directory holds.

    Attributes:
        directory: the run directory.
        config: the resolved configuration.
        records: records of the finished rounds, starting with round 0; empty if none is finished.
        environment: versions, device, parameter counts; empty if missing.
        data: how the data was split; empty if missing.
        confusion: how the models confused labels after the last round; empty if missing.
        confusion_start: the same before any training; empty if missing.
        exhibits: test examples with the models' answers; empty if missing.
        first_answers: id of a test example to each role's answer before any training; empty if missing.
        profile: how the clients' data is distributed, as sums over them; None if missing.
        personal: client id to the score of the adapter that it keeps; empty if missing.
        ended: when the last round was written; None if unknown.
    """

    directory: Path
    config: RunConfig
    records: Sequence[RoundRecord] = ()
    environment: dict[str, Any] = field(default_factory=dict[str, Any])
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    confusion: Confusion = field(default_factory=dict[str, Sequence[tuple[str, str, int]]])
    confusion_start: Confusion = field(default_factory=dict[str, Sequence[tuple[str, str, int]]])
    exhibits: Sequence[Exhibit] = ()
    first_answers: Mapping[str, Mapping[str, Answer]] = field(default_factory=dict[str, Mapping[str, Answer]])
    profile: "Profile | None" = None
    personal: Mapping[str, float] = field(default_factory=dict[str, float])
    ended: datetime | None = None

    @property
    def metric(self) -> str:
        """Name of the main metric."""
        return str(self.data.get("metric", "accuracy"))


@dataclass(frozen=True)
class Method:
    """Runs that differ only in their seed or, for standalone training, in the one client that they train.

    Attributes:
        name: name of the method, unique among the methods on its task.
        runs: its runs, at least one.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        """Return what readers call the method: its name, or that of the method of `fedcollm compare`."""
        return METHODS[self.name].label if self.name in METHODS else self.name

    @property
    def by_seed(self) -> dict[int, list[Run]]:
        """Return the runs by seed, in the order of the seeds."""
        seeds = sorted({run.config.seed for run in self.runs})
        return {seed: [run for run in self.runs if run.config.seed == seed] for seed in seeds}

    @property
    def federated(self) -> bool:
        """Return whether bytes would travel: not if all data is in one place, nor if every client trains alone."""
        run = self.runs[0]
        return run.config.task.partition.kind != "pooled" and not _is_client(run.directory)


def metric_of(methods: Iterable[Method]) -> str:
    """Return the name of the main metric of methods; `score` if they have several."""
    names = {run.metric for method in methods for run in method.runs}
    return names.pop() if len(names) == 1 else "score"


def find_runs(directory: Path) -> list[Path]:
    """Return every run directory at or below a directory, in natural order (`seed-2` before `seed-10`).

    Raises:
        UserError: the directory does not exist, or it holds no run.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory. Give one that `fedcollm run` or `fedcollm compare` wrote.")
    found: list[Path] = []
    for folder, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder)] if CONFIG in files else []
    if not found:
        raise UserError(
            f"{directory} holds no run: no {CONFIG} in it or below. Give a directory that `fedcollm run --out` wrote."
        )
    return sorted(found, key=lambda path: natural(str(path)))


def read_run(directory: Path) -> Run:
    """Read everything in a run directory that a report shows; files that are missing count as empty.

    Raises:
        UserError: the directory holds no run, or one of its files is malformed.
    """
    config, records = read_config(directory), read_records(directory)
    names = (ENVIRONMENT, DATA, CONFUSION, CONFUSION_START, PERSONAL)
    values: list[dict[str, Any]] = [read_json(directory, name) or {} for name in names]
    environment, data, confusion, confusion_start, personal = values
    told = [note for record in records for note in record.notes]
    data["notes"] = [*data.get("notes", ()), *told]
    return Run(
        directory,
        config,
        records,
        environment,
        data,
        confusion={role: [(true, found, number) for true, found, number in part] for role, part in confusion.items()},
        confusion_start={role: [(t, f, number) for t, f, number in part] for role, part in confusion_start.items()},
        exhibits=read_exhibits(directory),
        first_answers={one.id: one.answers for one in read_exhibits(directory, EXHIBITS_START)},
        profile=_profile(directory / PROFILE),
        personal=personal.get("scores", {}),
        ended=datetime.fromtimestamp((directory / ROUNDS).stat().st_mtime, UTC) if records else None,
    )


def _profile(file: Path) -> "Profile | None":
    if not file.is_file():
        return None
    from fedcollm.data.audit.profiles import read_profile  # it loads torch

    return read_profile(file)


def group(runs: Iterable[Run]) -> list[Method]:
    """Group runs into methods, in the order of their first runs.

    In the layout `METHOD/seed-S` or `METHOD/seed-S/client-K`, each folder METHOD is a method. Elsewhere, runs whose
    configurations differ only in their seed are a method, which is called `config.name`. If several methods on the same
    task would have the same name, the name of the folder is added.
    """
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((_task(run), *_identity(run)), []).append(run)
    names = [(task, name) for task, name, _ in groups]
    unique: list[Method] = []
    for (task, name, _), members in groups.items():
        if names.count((task, name)) > 1:
            name = f"{name} ({_folder(members[0]).name})"
        if any((task, name) == (_task(method.runs[0]), method.name) for method in unique):
            name = f"{name} ({members[0].directory})"
        unique.append(Method(name, tuple(members)))
    return unique


def _folder(run: Run) -> Path:
    """Return the folder that tells methods of the same name apart: that of the run, or that of its comparison."""
    folder = run.directory.resolve()
    folder = folder.parent if _is_client(folder) else folder
    return folder.parent.parent if _SEED.fullmatch(folder.name) else folder


def _task(run: Run) -> str:
    return f"{run.config.task.name} {run.config.task.path}"


def _identity(run: Run) -> tuple[str, str]:
    """Return the name of a run's method, and a text that distinguishes methods of the same name."""
    folder = run.directory.resolve()
    if _is_client(folder):
        folder = folder.parent
    if _SEED.fullmatch(folder.name):
        return folder.parent.name, str(folder.parent)
    return run.config.name, run.config.model_copy(update={"seed": 0}).model_dump_json()


def _is_client(folder: Path) -> bool:
    """Return whether a folder is the run of one client in standalone training, `METHOD/seed-S/client-K`."""
    return folder.name.startswith("client-") and folder.resolve().parent.name.startswith("seed-")


def with_true_roles(methods: Sequence[Method]) -> list[Method]:
    """Return the methods; if a method's SLM is the first method's LLM, with its scores under the role `llm`.

    `fedcollm compare` configures `centralized_llm` like this: in the loop, only the SLM can be tuned on private data.
    The score of a control, which has neither model, is that of both roles, unless the control is the first method.
    """
    slm, llm = methods[0].runs[0].config.slm, methods[0].runs[0].config.llm
    result = [methods[0]]
    for method in methods[1:]:
        records = [record for run in method.runs for record in run.records]
        if method.runs[0].config.control is not None:
            method = Method(method.name, tuple(replace(run, records=_as_both(run.records)) for run in method.runs))
        elif method.runs[0].config.slm == llm != slm and not any("llm" in record.scores for record in records):
            method = Method(method.name, tuple(replace(run, records=_as_llm(run.records)) for run in method.runs))
        result.append(method)
    return result


def _as_llm(records: Sequence[RoundRecord]) -> list[RoundRecord]:
    return [replace(r, scores={"llm": r.scores["slm"]} if "slm" in r.scores else {}) for r in records]


def _as_both(records: Sequence[RoundRecord]) -> list[RoundRecord]:
    return [replace(r, scores={role: r.scores["control"] for role in MODELS if "control" in r.scores}) for r in records]


def main_first(methods: Sequence[Method]) -> list[Method]:
    """Return the methods with FedCoLLM first, then the others of `fedcollm compare` in its order, then the rest."""
    order = ["fedcollm", *(name for name in METHODS if name != "fedcollm")]
    return sorted(methods, key=lambda method: order.index(method.name) if method.name in METHODS else len(order))


def described(name: str) -> str | None:
    """Return the description of a method of `fedcollm compare`; None for any other name.

    >>> described("warm")
    'FedCoLLM, τ = 2: server.distillation.temperature = 2.0'
    """
    return METHODS[name].description if name in METHODS else None
