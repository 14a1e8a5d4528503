"""Progress of long loops: `track` reports the progress of a loop, and `shown` makes it visible."""

import contextlib
import contextvars
import time
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedcollm import metrics

_display: contextvars.ContextVar["Progress | Console | None"] = contextvars.ContextVar("display", default=None)
_PLAIN_SECONDS = 20.0  # between two lines of progress where there is no terminal
_LOSSES_SECONDS = 0.5  # between two updates of the losses beside a bar
T = TypeVar("T")


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
    text, losses = (TextColumn(f"{{task.{what}}}", markup=False) for what in ("description", "fields[losses]"))
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), losses)
    with Progress(*columns, console=console, transient=True) as progress, metrics.listening(_Losses(progress)):
        token = _display.set(progress)
        try:
            yield progress.console
        finally:
            _display.reset(token)


class _Losses:
    """A listener that shows the losses of a step beside the progress bar of its loop, at most twice per second.

    Args:
        progress: the display, whose last bar belongs to the loop.
    """

    def __init__(self, progress: Progress):
        self._progress, self._last = progress, float("-inf")

    def __call__(self, step: metrics.Step) -> None:
        now = time.monotonic()
        if now - self._last < _LOSSES_SECONDS or not self._progress.tasks:
            return
        self._last = now
        losses = ", ".join(f"{name} {value:.3f}" for name, value in step.to_json()["losses"].items())
        self._progress.update(self._progress.tasks[-1].id, losses=f"loss: {losses}")


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield the items and, inside `shown`, show how many are done and how much time is left.

    Args:
        items: what to iterate over.
        description: what the loop does, in a few words.
        total: number of items.
    """
    display = _display.get()
    if isinstance(display, Progress):
        task = display.add_task(description, total=total, losses="")
        try:
            for item in items:
                yield item
                display.advance(task)
        finally:
            display.remove_task(task)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if display is not None and now - last > _PLAIN_SECONDS:
            left = (now - start) / done * (total - done) if done else float("nan")
            _print(display, f"{description}: {done}/{total}, {left:.0f} s left")
            last = now
        yield item


def say(message: str) -> None:
    """Print one line above the progress bars; outside `shown`, do nothing."""
    display = _display.get()
    if display is not None:
        _print(display.console if isinstance(display, Progress) else display, message)


def _print(console: Console, text: str) -> None:
    """Print text as it is, without interpreting markup, because another party may have written it."""
    console.print(text, markup=False, emoji=False, highlight=False)
