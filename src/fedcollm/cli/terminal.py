"""Commands in a terminal: progress while they run, what they leave when they end, and Ctrl-C.

Names, failures and questions come from other parties too. They are text: no console here reads markup or emoji in it.
"""

import contextlib
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fedcollm.errors import Interrupted

if TYPE_CHECKING:
    from fedcollm.messages import RoundRecord


def screen(silent: bool) -> Console:
    """Return a console for progress: what is standard error now, so that standard output can be piped."""
    return Console(file=sys.stderr, quiet=silent, highlight=False, markup=False, emoji=False)


def output() -> Console:
    """Return a console for results, on standard output."""
    return Console(highlight=False, markup=False, emoji=False)


@contextlib.contextmanager
def interruptible(again: str, kept: str = "Every finished round is saved") -> Iterator[None]:
    """Stop cleanly at Ctrl-C and SIGTERM, and say what is kept and how to go on.

    Args:
        again: the command that goes on.
        kept: what is kept, in words.

    Raises:
        Interrupted: somebody stopped it.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted. {kept}; go on with: {again}") from None


def show_rounds(records: Iterable["RoundRecord"], directory: Path, again: str, quiet: bool, as_json: bool) -> None:
    """Show a run's rounds as they end, then its summary, and write its report.

    Args:
        records: of the rounds, as the run yields them.
        directory: the run directory.
        again: the command that goes on after an interruption.
        quiet: print nothing.
        as_json: print the last record as one line of JSON, and nothing else on standard output.
    """
    from fedcollm.cli.tables import round_line, summary_table
    from fedcollm.progress import shown
    from fedcollm.report import write_report
    from fedcollm.runs.directory import REPORT

    record = None
    with shown(screen(quiet or as_json)) as live, interruptible(again):
        for record in records:
            live.print(round_line(record), soft_wrap=True)
    write_report([directory], directory / REPORT)
    if as_json and record is not None:
        print(record.to_json())
    elif not quiet:
        output().print(summary_table(directory))
        print(f"report: {directory / REPORT}")
