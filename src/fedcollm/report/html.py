"""Write a report on runs as one self-contained HTML file, which loads nothing from anywhere."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedcollm.config.yaml_text import write_yaml
from fedcollm.errors import UserError
from fedcollm.report import bundle, content, exhibits, heading, map_layout, panels, tables
from fedcollm.report.compared import COLUMNS, Compared
from fedcollm.report.compared_tables import difference_table, score_table, summary_table
from fedcollm.report.federation import federation_of
from fedcollm.report.runs import Method, find_runs, group, main_first, read_run, with_true_roles
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


def controls(compared: Sequence[Compared]) -> list[tables.Table]:
    """Return the tables of comparisons with controls; of several tasks, the summaries over tasks come first."""
    found = [summary_table(compared, role, page=True) for role in COLUMNS] if len(compared) > 1 else []
    for one in compared:
        found += [table for table in (score_table(one, page=True), difference_table(one, page=True)) if table]
    return [table for table in found if table.rows]


def render(everything: Sequence[Method], unfinished: Sequence[Path] = (), compared: Sequence[Compared] = ()) -> str:
    """Return the whole page.

    Args:
        everything: the methods on all tasks; the report is about the first one.
        unfinished: run directories that are left out because no round is finished.
        compared: the comparisons with controls, one per task.
    """
    methods = of_first_task(everything)
    run = methods[0].runs[0]
    numbers = tables.summarize(run)
    federation = federation_of(run) if methods[0].federated else None
    sections = panels.sections(methods, everything, compared)
    # plotly escapes "<", ">" and "/" in its JSON, so that no text can end the script element, and writes NaN as null.
    figures = ", ".join(f'"{panel.id}": {panel.figure.to_json()}' for _, found in sections for panel in found)
    environment = Environment(loader=PackageLoader("fedcollm.report", ""), autoescape=True, undefined=StrictUndefined)
    environment.filters["counted"], environment.filters["spoken"] = exhibits.counted, exhibits.spoken
    return environment.get_template("template.html").render(
        title=methods[0].name,
        run=run,
        headline=content.headline(methods[0], numbers),
        caution=content.caution(methods[0]),
        tiles=content.tiles(methods[0], numbers),
        facts=heading.facts(methods[0]),
        maps=map_layout.drawings(federation) if federation else (),
        map_text=map_layout.described(federation) if federation else "",
        comparison=tables.comparison(methods) if len(methods) > 1 or len(methods[0].by_seed) > 1 else None,
        compared=controls(compared),
        wide=panels.WIDE,
        explained=content.explained(methods),
        differences=content.differences(methods) if len(methods) > 1 else None,
        several=len(methods[0].runs) > 1,
        unfinished=unfinished,
        sections=sections,
        exhibits=exhibits.shown(run),
        compared_answers=any(one.id in run.first_answers for one in run.exhibits),
        regions=any(one.regions for one in run.exhibits),
        method=content.METHOD if run.config.control is None else content.CONTROL_METHOD,
        settings=content.settings(run.config),
        configuration=write_yaml(run.config.model_dump(mode="json"), sort_keys=False),
        environment=content.environment_table(run.environment) if run.environment else None,
        figures=Markup("{" + figures + "}"),
        plotly=bundle.packed(),
    )
