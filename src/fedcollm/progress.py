"""Progress of long loops: `track` reports the progress of a loop, and `shown` makes it visible."""

import contextlib
import contextvars
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from fedcollm import metrics
from fedcollm.printing import printable

#: What is said goes here too, for programs that keep a log.
LOGGER = logging.getLogger("fedcollm")
LOGGER.addHandler(logging.NullHandler())
LOGGER.propagate = False


@dataclass
class Current:
    """What this process does at the moment, for its log.

    Attributes:
        round: index of the round; None before the first one.
    """

    round: int | None = None


current: Current = Current()

_display: contextvars.ContextVar["_Bars | Console | None"] = contextvars.ContextVar("display", default=None)
_PLAIN_SECONDS = 20.0  # between two lines of progress where there is no terminal
_LOSSES_SECONDS = 0.5  # between two updates of the losses beside a bar
_WIDE = 80  # columns that a terminal needs to show bars and losses too
T = TypeVar("T")


class _Count(ProgressColumn):
    """How many items are done, and of how many; nothing for what has no count."""

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{int(task.completed)}/{int(task.total)}")


class _TimeLeft(ProgressColumn):
    """The time left by the mean of the steps so far, which may take hours; before the first step, the time spent."""

    def render(self, task: Task) -> Text:
        left: float | None = task.fields["left"]
        if left is None:
            return Text(f"{_clock(task.elapsed or 0.0)} so far")
        return Text(f"{_clock(max(left - (time.monotonic() - task.fields['at']), 0.0))} left")


def _clock(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds.

    >>> _clock(3.2), _clock(75), _clock(7384)
    ('0:03', '1:15', '2:03:04')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Bars:
    """The bars of nested loops, the outermost one on top; where there is no loop, what is being done instead.

    Args:
        progress: the display.
    """

    def __init__(self, progress: Progress):
        self.progress, self._open = progress, list[TaskID]()
        self._idle = progress.add_task("starting", total=None, losses="", left=None, at=0.0)

    def say(self, message: str) -> None:
        """Print a line, and show it until there is a bar or another line."""
        _print(self.progress.console, message)
        self.progress.update(self._idle, description=printable(message))

    def add(self, description: str, total: int, done: int) -> TaskID:
        """Add a bar below those that are there."""
        self._open.append(
            self.progress.add_task(printable(description), total=total, completed=done, losses="", left=None, at=0.0)
        )
        self.progress.update(self._idle, visible=False)
        return self._open[-1]

    def remove(self, bar: TaskID) -> None:
        """Remove a bar."""
        self._open.remove(bar)
        self.progress.remove_task(bar)
        if not self._open:
            self.progress.reset(self._idle, description="working", visible=True)

    def show_losses(self, losses: str) -> None:
        """Show losses beside the innermost bar."""
        if self._open:
            self.progress.update(self._open[-1], losses=losses)


@contextlib.contextmanager
def shown(console: Console) -> Generator[Console, None, None]:
    """Show the progress of every `track` inside the `with` block.

    Args:
        console: where to show it: as bars if it is a terminal, otherwise as a plain line every 20 seconds.

    Yields:
        The console to print to while the bars are shown.
    """
    if not console.is_terminal:
        token = _display.set(console)
        try:
            yield console
        finally:
            _display.reset(token)
        return
    with Progress(*_columns(console), console=console, transient=True) as progress:
        bars = _Bars(progress)
        token = _display.set(bars)
        try:
            with metrics.listening(_Losses(bars)):
                yield progress.console
        finally:
            _display.reset(token)


def _columns(console: Console) -> list[ProgressColumn]:
    """Return what a line of progress consists of. The spinner is in ASCII, as some terminals know nothing else."""
    text, losses = (TextColumn(f"{{task.{what}}}", markup=False) for what in ("description", "fields[losses]"))
    short: list[ProgressColumn] = [SpinnerColumn("line"), text, _Count(), _TimeLeft()]
    return short if console.width < _WIDE else [*short[:2], BarColumn(20), *short[2:], losses]


class _Losses:
    """A listener that shows the losses of a step beside the progress bar of its loop, at most twice per second.

    Args:
        bars: the bars, the innermost of which belongs to the loop.
    """

    def __init__(self, bars: _Bars):
        self._bars, self._last = bars, float("-inf")

    def __call__(self, step: metrics.Step) -> None:
        now = time.monotonic()
        if now - self._last < _LOSSES_SECONDS:
            return
        self._last = now
        losses = ", ".join(f"{name} {value:.3f}" for name, value in step.to_json()["losses"].items())
        self._bars.show_losses(f"loss: {losses}")


@contextlib.contextmanager
def counting(description: str, total: int, done: int = 0) -> Generator[Callable[[], None], None, None]:
    """Count steps and, inside `shown`, show how many are done and how much time is left.

    Args:
        description: what the steps do, in a few words.
        total: number of steps.
        done: number of steps that were done before, which say nothing about the time of those to come.

    Yields:
        The function to call after each step.
    """
    display, start, count = _display.get(), time.monotonic(), done
    bar = display.add(description, total, done) if isinstance(display, _Bars) else None
    last = start

    def step() -> None:
        nonlocal count, last
        count, now = count + 1, time.monotonic()
        left = (now - start) / (count - done) * (total - count)
        if isinstance(display, _Bars) and bar is not None:
            display.progress.update(bar, advance=1, left=left, at=now)
        elif isinstance(display, Console) and now - last > _PLAIN_SECONDS and count < total:
            _print(display, f"{description}: {count}/{total}, {left:.0f} s left")
            last = now

    try:
        yield step
    finally:
        if isinstance(display, _Bars) and bar is not None:
            display.remove(bar)


def track(items: Iterable[T], description: str, total: int, done: int = 0) -> Iterator[T]:
    """Yield the items and, inside `shown`, show how many are done and how much time is left.

    Args:
        items: what to iterate over.
        description: what the loop does, in a few words.
        total: number of items, with those that were done before.
        done: number of items that were done before.
    """
    with counting(description, total, done) as step:
        for item in items:
            yield item
            step()


def say(message: str, level: int = logging.INFO) -> None:
    """Print one line above the progress bars, inside `shown` only, and log it.

    Args:
        message: the line.
        level: its level in a log.
    """
    LOGGER.log(level, "%s", message)
    display = _display.get()
    if isinstance(display, _Bars):
        display.say(message)
    elif display is not None:
        _print(display, message)


def _print(console: Console, text: str) -> None:
    """Print text without interpreting markup or controls in it, because another party may have written it."""
    console.print(printable(text), markup=False, emoji=False, highlight=False, soft_wrap=True)
