"""The command `fedcollm compare`: the paper's tables, with controls."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from fedcollm.cli.options import Json, Quiet, Settings, argument, option
from fedcollm.errors import UserError

if TYPE_CHECKING:
    from fedcollm.experiments.comparison import Jobs, Plan


def compare(
    sources: Annotated[
        list[str] | None,
        argument(metavar="[CONFIG|PRESET]...", help="YAML files or presets, one per task; default: icd10"),
    ] = None,
    methods: Annotated[
        str | None, option("--methods", help="comma-separated; default: those of the paper, and controls")
    ] = None,
    seeds: Annotated[str, option("--seeds", help="comma-separated")] = "0",
    jobs: Annotated[
        str, option("--jobs", help="parallel runs, each in its own process; auto: as many as memory and cores allow")
    ] = "1",
    settings: Settings = None,
    out: Annotated[Path | None, option("--out", help="directory of all runs; default: runs/compare-NAME")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run FedCoLLM, the baselines and the controls, and print the paper's tables. Continue where it was stopped."""
    from fedcollm.config.loading import load_config, parse_settings
    from fedcollm.experiments.comparison import Plan, default_directory, default_methods

    configs = [load_config(source, **parse_settings(settings or [])) for source in sources or ["icd10"]]
    chosen, numbers = methods.split(",") if methods else default_methods(configs), _integers(seeds)
    _show(Plan(out or default_directory(configs), configs, chosen, numbers), _jobs(jobs), quiet, as_json)


def _jobs(text: str) -> int | Literal["auto"]:
    if text != "auto" and not (text.isdecimal() and int(text)):
        raise UserError(f"--jobs {text!r}: give the number of parallel runs, or auto.")
    return "auto" if text == "auto" else int(text)


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds {text!r}: give whole numbers separated by commas, such as 0,1,2.") from error


def _show(plan: "Plan", jobs: "Jobs", quiet: bool, as_json: bool) -> None:
    """Do the runs and show their rounds as they end; then show the tables, and write tables and reports.

    The tables and reports of the finished runs are shown and written even if other runs failed.

    Args:
        plan: the runs of the comparison.
        jobs: number of runs at the same time.
        quiet: whether to print nothing.
        as_json: whether to print only the numbers, as one line of JSON.

    Raises:
        UserError: some runs failed because of the user's input.
        RuntimeError: some runs failed because of a fault of fedcollm.
    """
    from fedcollm.cli.tables import comparison_tables, round_line
    from fedcollm.cli.terminal import interruptible, output, screen
    from fedcollm.experiments.comparison import comparing
    from fedcollm.experiments.workers import Failed, raise_for
    from fedcollm.progress import say, shown
    from fedcollm.report import write_report
    from fedcollm.runs.directory import REPORT

    failed: list[Failed] = []
    with shown(screen(quiet or as_json)) as live:
        with interruptible("the same command"):
            for place, record in comparing(plan, failed, jobs):
                live.print(f"{place:32} {round_line(record)}", soft_wrap=True)
        say("writing tables and reports")
        comparison = plan.tabulate()
        homes = [plan.home(one) for one, table in zip(plan.configs, comparison.tasks, strict=True) if table.rows]
        reports = [write_report([home], home / REPORT) for home in homes]
    if homes:
        comparison.write()
        if as_json:
            print(json.dumps(comparison.to_dict()))
        elif not quiet:
            for table in comparison_tables(comparison):
                output().print(table)
            ended = f"finished: {len(plan.jobs()) - len(failed)} of {len(plan.jobs())} runs"
            print("\n".join([ended, *(f"report: {file}" for file in reports)]))
    raise_for(failed)
