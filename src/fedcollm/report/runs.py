"""Find run directories, read them, and group them into methods that differ in nothing but the seed."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from fedcollm.config import RunConfig
from fedcollm.config.methods import METHODS
from fedcollm.errors import UserError
from fedcollm.messages import RoundRecord
from fedcollm.report.formats import natural
from fedcollm.runs.directory import CONFIG, CONFUSION, DATA, ENVIRONMENT, ROUNDS, read_config, read_json, read_records


@dataclass(frozen=True)
class Run:
    """What one run directory holds.

    Attributes:
        directory: where it is.
        config: resolved configuration.
        records: finished rounds, from round 0 on; empty if none is finished.
        environment: versions, device, parameter counts; empty if missing.
        data: how the data was split; empty if missing.
        confusion: role to rows of true label, predicted label, examples; empty if missing.
    """

    directory: Path
    config: RunConfig
    records: Sequence[RoundRecord] = ()
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    confusion: dict[str, list[tuple[str, str, int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """Runs that differ in nothing but the seed, or (standalone) in the one client that they train.

    Attributes:
        name: unique within a report.
        runs: at least one.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def by_seed(self) -> dict[int, list[Run]]:
        """Seed to its runs, in order of the seeds."""
        seeds = sorted({run.config.seed for run in self.runs})
        return {seed: [run for run in self.runs if run.config.seed == seed] for seed in seeds}

    @property
    def federated(self) -> bool:
        """Whether its bytes would travel: not if one place has all data, or every client is alone."""
        run = self.runs[0]
        return run.config.task.partition.kind != "pooled" and not _is_client(run.directory)


def find_runs(directory: Path) -> list[Path]:
    """Every run directory at or below a directory, in natural order (`seed-2` before `seed-10`).

    Raises:
        UserError: the directory is missing, or no run is in it.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory. Give one that `fedcollm run` or `fedcollm compare` wrote.")
    found = []
    for folder, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder)] if CONFIG in files else []
    if not found:
        raise UserError(
            f"{directory} holds no run: no {CONFIG} in it or below. Give a directory that `fedcollm run --out` wrote."
        )
    return sorted(found, key=lambda path: natural(str(path)))


def read_run(directory: Path) -> Run:
    """Read all of a run directory that a report shows; parts that a run never wrote are empty.

    Raises:
        UserError: there is no run, or one of its files is not what a run writes.
    """
    name = CONFIG
    try:
        config = read_config(directory)
        name = ROUNDS
        records = read_records(directory)
        values: dict[str, dict[str, Any]] = {}
        for name in (ENVIRONMENT, DATA, CONFUSION):
            values[name] = read_json(directory, name) or {}
        confusion = {role: [(str(t), str(p), int(n)) for t, p, n in rows] for role, rows in values[CONFUSION].items()}
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{directory / name} is not what this version of fedcollm writes: {reason}. Restore it, or run again."
        ) from error
    return Run(directory, config, records, values[ENVIRONMENT], values[DATA], confusion)


def group(runs: Iterable[Run]) -> list[Method]:
    """Methods in order of their first run.

    In the layout `METHOD/seed-S` or `METHOD/seed-S/client-K` the folder METHOD is the method. Elsewhere it is
    the configuration without its seed, named by `config.name`; where a name means several
    configurations, the folder's name is added.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault(_identity(run), []).append(run)
    names = [name for name, _ in groups]
    unique: list[Method] = []
    for (name, _), members in groups.items():
        if names.count(name) > 1:
            name = f"{name} ({members[0].directory.name})"
        if any(name == method.name for method in unique):
            name = f"{name} ({members[0].directory})"
        unique.append(Method(name, tuple(members)))
    return unique


def _identity(run: Run) -> tuple[str, str]:
    """Name of a run's method, and what tells methods of one name apart."""
    folder = run.directory.resolve()
    if _is_client(folder):
        folder = folder.parent
    if re.fullmatch(r"seed-[0-9]+", folder.name):
        return folder.parent.name, str(folder.parent)
    return run.config.name, run.config.model_copy(update={"seed": 0}).model_dump_json()


def _is_client(folder: Path) -> bool:
    """Whether this is one client of a standalone comparison, `METHOD/seed-S/client-K`."""
    return folder.name.startswith("client-") and folder.resolve().parent.name.startswith("seed-")


def with_true_roles(methods: Sequence[Method]) -> list[Method]:
    """The same methods, with the scores of one that tunes the first one's LLM in the SLM's place as the LLM's.

    `fedcollm compare` does so for `centralized_llm`: the loop has no other way to tune an LLM on all data.
    """
    slm, llm = methods[0].runs[0].config.slm, methods[0].runs[0].config.llm
    result = [methods[0]]
    for method in methods[1:]:
        records = [record for run in method.runs for record in run.records]
        if method.runs[0].config.slm == llm != slm and not any("llm" in record.scores for record in records):
            method = Method(method.name, tuple(replace(run, records=_as_llm(run.records)) for run in method.runs))
        result.append(method)
    return result


def _as_llm(records: Sequence[RoundRecord]) -> list[RoundRecord]:
    return [replace(r, scores={"llm": r.scores["slm"]} if "slm" in r.scores else {}) for r in records]


def main_first(methods: Sequence[Method]) -> list[Method]:
    """The same methods, those that `fedcollm compare` runs in front in their own order: FedCoLLM first."""
    order = ["fedcollm", *(name for name in METHODS if name != "fedcollm")]
    return sorted(methods, key=lambda method: order.index(method.name) if method.name in METHODS else len(order))


def described(name: str) -> str | None:
    """What one of the methods that `fedcollm compare` runs is, in a sentence; None for any other name.

    >>> described("warm")
    'FedCoLLM, τ = 2: server.distillation.temperature = 2.0'
    """
    return METHODS[name].description if name in METHODS else None
