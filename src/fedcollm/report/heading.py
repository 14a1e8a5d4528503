"""What stands at the top of a page: the task, the models, the clients by name, the seeds, the date and the version."""

from collections.abc import Sequence
from pathlib import PurePath

from fedcollm.messages import readable
from fedcollm.report.federation import federation_of, models_of
from fedcollm.report.formats import amount, count
from fedcollm.report.runs import Method, Run

#: Largest number of clients whose names are given; of more clients, the first ones are named.
_NAMED = 8


def facts(method: Method) -> list[tuple[str, str]]:
    """Return what a method's runs were about, each fact with its name; facts that are unknown are left out."""
    run = method.runs[0]
    models = [(model.label, model.name) for model in models_of(run) if model.role != "control"]
    parties = federation_of(run) if method.federated else None
    names = [member.name for member in parties.members] if parties else []
    found = [
        ("Task", task_name(run)),
        *models,
        ("Clients", _listed(names)),
        ("Seeds" if len(method.by_seed) > 1 else "Seed", ", ".join(map(str, method.by_seed))),
        ("Finished", _ended(method.runs)),
        ("fedcollm", str(run.environment.get("versions", {}).get("fedcollm", ""))),
    ]
    return [(name, readable(text)) for name, text in found if text]


def task_name(run: Run) -> str:
    """Return the name of a run's task; of a task on the user's own files, with the name of their folder."""
    task = run.config.task
    place = "" if task.path is None else PurePath(task.path).name
    return f"{task.name}: {place}" if place not in ("", task.name) else task.name


def _listed(names: Sequence[str]) -> str:
    if len(names) <= _NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMED])} and {count(len(names) - _NAMED)} more"


def _ended(runs: Sequence[Run]) -> str:
    """Return when the last round of several runs was written; if it is not the last planned one, say so."""
    ended = max((run.ended for run in runs if run.ended is not None), default=None)
    if ended is None:
        return ""
    left = max(run.config.federation.rounds - run.records[-1].round for run in runs if run.records)
    text = f"{ended:%Y-%m-%d %H:%M} UTC"
    return f"{text}, {amount(left, 'round')} to go" if left > 0 else text
