"""Commands in a terminal: progress while they run, what they leave when they end, and Ctrl-C."""

import contextlib
import json
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console

from fedcollm.cli import tables as views
from fedcollm.errors import Interrupted
from fedcollm.experiments.comparison import Jobs, Plan, comparing
from fedcollm.experiments.workers import Failed, raise_for
from fedcollm.messages import RoundRecord
from fedcollm.progress import shown
from fedcollm.report import write_report
from fedcollm.runs.directory import REPORT


def screen(silent: bool) -> Console:
    """Progress goes to what is standard error now, so that standard output can be piped."""
    return Console(file=sys.stderr, quiet=silent, highlight=False)


@contextlib.contextmanager
def interruptible(again: str, kept: str = "Every finished round is saved") -> Iterator[None]:
    """Ctrl-C and SIGTERM stop cleanly and say what is kept and how to go on."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted. {kept}; go on with: {again}") from None


def show_rounds(records: Iterable[RoundRecord], directory: Path, again: str, quiet: bool, as_json: bool) -> None:
    """Show a run's rounds as they end, then its summary, and write its report.

    Args:
        records: of the rounds, as the run yields them.
        directory: the run directory.
        again: the command that goes on after an interruption.
        quiet: print nothing.
        as_json: print the last record as one line of JSON, and nothing else on standard output.
    """
    record = None
    with shown(screen(quiet or as_json)) as live, interruptible(again):
        for record in records:
            live.print(views.round_line(record), soft_wrap=True)
    write_report([directory], directory / REPORT)
    if as_json and record is not None:
        print(record.to_json())
    elif not quiet:
        Console().print(views.summary_table(directory))
        print(f"report: {directory / REPORT}")


def show_comparison(plan: Plan, jobs: Jobs, quiet: bool, as_json: bool) -> None:
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
    failed: list[Failed] = []
    with shown(screen(quiet or as_json)) as live, interruptible("the same command"):
        for place, record in comparing(plan, failed, jobs):
            live.print(f"{place:32} {views.round_line(record)}", soft_wrap=True, markup=False)
    comparison = plan.tabulate()
    homes = [plan.home(one) for one, table in zip(plan.configs, comparison.tasks, strict=True) if table.rows]
    if homes:
        comparison.write()
        reports = [write_report([home], home / REPORT) for home in homes]
        if as_json:
            print(json.dumps(comparison.to_dict()))
        elif not quiet:
            for table in views.comparison_tables(comparison):
                Console().print(table)
            print("\n".join(f"report: {file}" for file in reports))
    raise_for(failed)
