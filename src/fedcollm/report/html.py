"""Write a report on runs as one self-contained HTML file, which loads nothing from anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedcollm.config.yaml_text import write_yaml
from fedcollm.errors import UserError
from fedcollm.modalities.exhibits import bounded
from fedcollm.report import bundle, content, exhibits, heading, map_layout, panels, tables
from fedcollm.report.compared import COLUMNS, Compared
from fedcollm.report.compared_tables import difference_table, score_table, summary_table
from fedcollm.report.federation import federation_of
from fedcollm.report.runs import Method, Run, find_runs, group, main_first, read_run, with_true_roles
from fedcollm.report.tasks import comparisons, of_first_task
from fedcollm.runs.directory import CONFIG, REPORT
from fedcollm.storage import make_directory, write_atomically, writing


def write_report(directories: Sequence[Path], out: Path) -> Path:
    """Write a report on runs.

    Args:
        directories: run directories, or folders that hold several (`fedcollm compare`). The report is about the first
            run, or about FedCoLLM if the first folder holds several runs, and compares the others with it.
        out: the file to write, or an existing folder, in which `report.html` is written.

    Returns:
        The path of the file.

    Raises:
        UserError: a directory holds no run, none has a finished round, or the file can't be written.
    """
    methods, unfinished = read_methods(directories)
    file = out / REPORT if out.is_dir() else out
    page = render(methods, unfinished, comparisons(directories))
    with writing(file.parent):
        make_directory(file.parent)
        write_atomically(file, page)
    return file


def read_methods(directories: Sequence[Path]) -> tuple[list[Method], list[Path]]:
    """Return the methods in the order of the report, and the run directories without a finished round.

    Raises:
        UserError: a directory holds no run, or none has a finished round.
    """
    if not directories:
        raise UserError("No run directory given. Give one that `fedcollm run --out` wrote.")
    found = {path.resolve(): path for directory in directories for path in find_runs(directory)}
    runs = [read_run(path) for path in found.values()]
    finished = [run for run in runs if run.records]
    unfinished = [run.directory for run in runs if not run.records]
    if not finished:
        first = unfinished[0]
        raise UserError(
            f"{first} has no finished round to report on. Resume it with: fedcollm run --resume --out {first}"
        )
    methods = group(finished)
    ordered = methods if (directories[0] / CONFIG).is_file() else main_first(methods)
    return with_true_roles(ordered), unfinished


#: Largest size of a page in bytes; pictures of examples are left out where it would be larger.
LARGEST = 990_000
#: Bytes that a picture takes in addition to its content, at most: its element, and what is drawn over it.
_PER_PICTURE = 600


@dataclass(frozen=True)
class Controls:
    """The tables of comparisons with controls.

    Attributes:
        shown: the tables of one task, or the summaries over several tasks.
        folded: the tables of each of several tasks by its name, which a reader opens.
    """

    shown: list[tables.Table]
    folded: list[tuple[str, list[tables.Table]]]


def controls(compared: Sequence[Compared]) -> Controls:
    """Return the tables of comparisons with controls."""
    by_task = [
        (one.name, [table for table in (score_table(one, page=True), difference_table(one, page=True)) if table])
        for one in compared
    ]
    if len(by_task) < 2:
        return Controls([table for _, found in by_task for table in found], [])
    summaries = [summary_table(compared, role, page=True) for role in COLUMNS]
    return Controls([table for table in summaries if table.rows], by_task)


def render(everything: Sequence[Method], unfinished: Sequence[Path] = (), compared: Sequence[Compared] = ()) -> str:
    """Return the whole page.

    Args:
        everything: the methods on all tasks; the report is about the first one.
        unfinished: run directories that are left out because no round is finished.
        compared: the comparisons with controls, one per task.
    """
    methods = of_first_task(everything)
    run = methods[0].runs[0]
    values = _values(methods, unfinished) | _plots(methods, everything, compared) | {"compared": controls(compared)}
    environment = Environment(loader=PackageLoader("fedcollm.report", ""), autoescape=True, undefined=StrictUndefined)
    environment.filters["counted"], environment.filters["spoken"] = exhibits.counted, exhibits.spoken
    template = environment.get_template("template.html")
    page = template.render(values, **_exhibits(run, 0))
    if not any(one.picture for one in run.exhibits):
        return page
    room = LARGEST - len(page.encode()) - _PER_PICTURE * len(run.exhibits)
    return template.render(values, **_exhibits(run, max(0, room * 3 // 4)))  # base64 takes 4 bytes for 3


def _values(methods: Sequence[Method], unfinished: Sequence[Path]) -> dict[str, Any]:
    """Return the values of the page without plots and examples."""
    run, numbers = methods[0].runs[0], tables.summarize(methods[0].runs[0])
    return {
        "title": methods[0].label,
        "run": run,
        "headline": content.headline(methods[0], numbers),
        "caution": content.caution(methods[0]),
        "facts": heading.facts(methods[0]),
        "tiles": content.tiles(methods[0], numbers),
        "comparison": tables.comparison(methods) if len(methods) > 1 or len(methods[0].by_seed) > 1 else None,
        "explained": content.explained(methods),
        "differences": content.differences(methods) if len(methods) > 1 else None,
        "several": len(methods[0].runs) > 1,
        "unfinished": unfinished,
        "method": content.METHOD if run.config.control is None else content.CONTROL_METHOD,
        "settings": content.settings(run.config),
        "configuration": write_yaml(run.config.model_dump(mode="json"), sort_keys=False),
        "environment": content.environment_table(run.environment) if run.environment else None,
    }


def _plots(methods: Sequence[Method], everything: Sequence[Method], compared: Sequence[Compared]) -> dict[str, Any]:
    """Return the map and the plots, with what draws them."""
    federation = federation_of(methods[0].runs[0]) if methods[0].federated else None
    sections = panels.sections(methods, everything, compared)
    figures = ", ".join(f'"{panel.id}": {panel.figure.to_json()}' for _, found in sections for panel in found)
    return {
        "maps": map_layout.drawings(federation) if federation else (),
        "map_text": map_layout.described(federation) if federation else "",
        "sections": sections,
        "wide": panels.WIDE,
        "figures": bundle.packed("{" + figures + "}"),  # plotly writes NaN as null
        "plotly": bundle.script(),
    }


def _exhibits(run: Run, room: int) -> dict[str, Any]:
    """Return the examples, with as many pictures as there is room for, in bytes of PNG."""
    pictured = bounded(run.exhibits, room)
    return {
        "exhibits": exhibits.shown(run, pictured),
        "compared_answers": any(one.id in run.first_answers for one in pictured),
        "pictures_left_out": exhibits.left_out(run.exhibits, pictured),
        "regions": any(one.regions for one in run.exhibits),
    }
