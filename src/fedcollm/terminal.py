"""Commands in a terminal: progress while they run, what they leave when they end, and Ctrl-C."""

import contextlib
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console

from fedcollm import views
from fedcollm.errors import Interrupted
from fedcollm.messages import RoundRecord
from fedcollm.progress import shown
from fedcollm.report import write_report
from fedcollm.run_directory import REPORT


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
