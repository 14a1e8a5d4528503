"""Commands in a terminal: their progress, their results, and Ctrl-C.

Names, failures and questions may come from other parties, so no console here interprets markup, emoji or controls in a
text.
"""

import contextlib
import shutil
import signal
import sys
import textwrap
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console as AnyConsole
from rich.table import Table
from rich.text import Text

from fedcollm.errors import Interrupted
from fedcollm.printing import printable

if TYPE_CHECKING:
    from fedcollm.messages import RoundRecord


class Console(AnyConsole):
    """A console that lets no control characters through which stand in a text; it makes styles by its own."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text as it is printed, alone or in a table."""
        return super().render_str(printable(text), **options)


def screen(silent: bool) -> Console:
    """Return a console for progress. It writes to standard error, so that standard output can be piped."""
    return Console(file=sys.stderr, quiet=silent, highlight=False, markup=False, emoji=False)


def output() -> Console:
    """Return a console for results, on standard output."""
    return Console(highlight=False, markup=False, emoji=False)


def new_table(title: str, *header: str) -> Table:
    """Return a table without rows, whose cells lose no letter in a narrow terminal.

    Args:
        title: what stands above it.
        header: names of the columns, of which the first is aligned to the left and the others to the right.
    """
    table = Table(title=title, title_justify="left")
    for column in header:
        table.add_column(column, justify="right" if table.columns else "left", overflow="fold")
    return table


def wrapped(line: str) -> str:
    """Return a line of terms; in a terminal, its continuation can't be taken for a line of its own."""
    if not sys.stdout.isatty():
        return line
    width = max(shutil.get_terminal_size().columns - 1, 40)
    return textwrap.fill(line, width, subsequent_indent=" " * 14, break_on_hyphens=False)


@contextlib.contextmanager
def interruptible(again: str, kept: str = "Every finished round is saved") -> Generator[None, None, None]:
    """Turn Ctrl-C and SIGTERM in the block into an error that says what is kept and how to continue.

    Args:
        again: the command that continues.
        kept: a sentence, without its period, that says what is kept.

    Raises:
        Interrupted: the block was interrupted.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted. {kept}. Continue with: {again}") from None


def show_rounds(records: Iterable["RoundRecord"], directory: Path, again: str, quiet: bool, as_json: bool) -> None:
    """Show a run's rounds as they end, then its summary, and write its report.

    Args:
        records: the records of the rounds, as the run yields them.
        directory: the run directory.
        again: the command that continues after an interruption.
        quiet: whether to print nothing.
        as_json: whether to print only the last record, as one line of JSON.
    """
    from fedcollm.progress import LOGGER, say, shown
    from fedcollm.runs.directory import REPORT

    record = None
    with shown(screen(quiet or as_json)) as live:
        say("loading libraries")
        from fedcollm.cli.tables import round_line, summary_table  # takes seconds

        with interruptible(again):
            for record in records:
                live.print(line := round_line(record), soft_wrap=True)
                LOGGER.info("%s", line)
        say(f"writing {directory / REPORT}")
        from fedcollm.report import write_report  # its plots take a while to import

        write_report([directory], directory / REPORT)
        LOGGER.info("finished: all rounds of %s", directory)
    if as_json and record is not None:
        print(record.to_json())
    elif not quiet:
        output().print(summary_table(directory))
        print(f"finished: all rounds of {directory}\nreport: {directory / REPORT}")
