"""`fedcollm compare`: the paper's tables, with controls."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedcollm.cli.options import Json, Quiet, Settings
from fedcollm.errors import UserError

if TYPE_CHECKING:
    from fedcollm.experiments.comparison import Jobs, Plan


def compare(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG|PRESET]...", help="YAML files or presets, one a task; default: icd10"),
    ] = None,
    methods: Annotated[
        str | None, typer.Option("--methods", help="comma-separated; default: the paper's, and controls")
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="comma-separated")] = "0",
    jobs: Annotated[
        str, typer.Option("--jobs", help="runs at once, each a process; auto: as many as memory and cores allow")
    ] = "1",
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option("--out", help="directory of all runs; default: runs/compare-NAME")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run the method, the baselines and the controls, and print the paper's tables. Goes on where it was stopped."""
    from fedcollm.config.loading import load_config, parse_settings
    from fedcollm.config.methods import PAPER
    from fedcollm.experiments.comparison import Plan, default_directory

    configs = [load_config(source, **parse_settings(settings or [])) for source in sources or ["icd10"]]
    chosen, numbers = methods.split(",") if methods else list(PAPER), _integers(seeds)
    _show(Plan(out or default_directory(configs), configs, chosen, numbers), _jobs(jobs), quiet, as_json)


def _jobs(text: str) -> int | Literal["auto"]:
    if text != "auto" and not (text.isdecimal() and int(text)):
        raise UserError(f"--jobs {text!r}: give a number of runs at once, or auto")
    return "auto" if text == "auto" else int(text)


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds {text!r}: give whole numbers with commas between, such as 0,1,2") from error


def _show(plan: "Plan", jobs: "Jobs", quiet: bool, as_json: bool) -> None:
    """Show the rounds of all runs as they end, then the tables, and write both tables and reports.

    Args:
        plan: what is compared.
        jobs: runs at once.
        quiet: print nothing.
        as_json: print all numbers as one line of JSON, and nothing else on standard output.

    Raises:
        UserError: runs failed; what the others came to is shown and written all the same.
        RuntimeError: the same, where a fault of fedcollm is the reason.
    """
    from fedcollm.cli.tables import comparison_tables, round_line
    from fedcollm.cli.terminal import interruptible, output, screen
    from fedcollm.experiments.comparison import comparing
    from fedcollm.experiments.workers import Failed, raise_for
    from fedcollm.progress import shown
    from fedcollm.report import write_report
    from fedcollm.runs.directory import REPORT

    failed: list[Failed] = []
    with shown(screen(quiet or as_json)) as live, interruptible("the same command"):
        for place, record in comparing(plan, failed, jobs):
            live.print(f"{place:32} {round_line(record)}", soft_wrap=True)
    comparison = plan.tabulate()
    homes = [plan.home(one) for one, table in zip(plan.configs, comparison.tasks, strict=True) if table.rows]
    if homes:
        comparison.write()
        reports = [write_report([home], home / REPORT) for home in homes]
        if as_json:
            print(json.dumps(comparison.to_dict()))
        elif not quiet:
            for table in comparison_tables(comparison):
                output().print(table)
            print("\n".join(f"report: {file}" for file in reports))
    raise_for(failed)
