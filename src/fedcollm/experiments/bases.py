"""All runs of a comparison that cut and heal a base in the same way have the same base."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedcollm.config import RunConfig
from fedcollm.errors import UserError
from fedcollm.experiments.workers import Job
from fedcollm.runs.directory import recorded_bases
from fedcollm.runs.shrink_plan import base_names


def refuse_other_bases(done: Sequence[Job], open_jobs: Sequence[Job]) -> None:
    """Refuse to put runs into one table whose bases were made of different texts.

    Two runs with the same sections of the configuration have different bases if the healing text, the whole model or
    the hardware changed in between.

    Args:
        done: the finished runs.
        open_jobs: the runs that are still to be done. Those whose base can't be planned fail for themselves.

    Raises:
        UserError: a finished run has another base than another one, or than a run would get now.
    """
    known: dict[str, tuple[str, Path]] = {}
    for job in done:
        for role, name in (recorded_bases(job.directory) or {}).items():
            other, directory = known.setdefault(_section(job.config, role), (name, job.directory))
            if other != name:
                raise _mixed(role, job.directory, name, f"the run in {directory} has {other}")
    planned: dict[str, Mapping[str, str]] = {}
    for job in open_jobs if known else ():
        parts = job.config.model_dump_json(include={"slm", "llm", "device", "control", "server"})
        if parts not in planned:
            planned[parts] = {}
            with contextlib.suppress(UserError):
                planned[parts] = base_names(job.config, job.inputs.modality)
        for role, name in planned[parts].items():
            other, directory = known.get(_section(job.config, role), (name, job.directory))
            if other != name:
                raise _mixed(role, directory, other, f"the run {job.place} would get {name}")


def _section(config: RunConfig, role: str) -> str:
    return getattr(config, role).model_dump_json(include={"source", "layers", "layer_choice", "mlp_share", "heal"})


def _mixed(role: str, directory: Path, name: str, rest: str) -> UserError:
    return UserError(
        f"{role}.heal: the run in {directory} has the base {name}, and {rest}, so one table must not hold both: the "
        f"text, the whole model or the hardware is not the same. Restore it, delete {directory} so that the run is "
        "done again, or choose another --out."
    )
