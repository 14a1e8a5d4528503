"""Progress of long loops, shown where somebody looks: `with shown(): for x in track(xs, "..."): ...`."""

import contextlib
import contextvars
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedcollm import metrics

_display: contextvars.ContextVar["Progress | Console | None"] = contextvars.ContextVar("display", default=None)
_PLAIN_SECONDS, _LOSSES_SECONDS = 20.0, 0.5
T = TypeVar("T")


@contextlib.contextmanager
def shown(console: Console) -> Iterator[Console]:
    """Show the progress of every `track` inside: bars in a terminal, else a plain line now and then."""
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
    """Shows the losses of a step beside the bar of its loop, not more often than a reader can follow.

    Args:
        progress: with the bar of the loop as its last one.
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
    """Yield the items; show how many of `total` are done and the time left, if progress is shown."""
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
    """One line for whoever looks; nothing if nobody does."""
    display = _display.get()
    if display is not None:
        _print(display.console if isinstance(display, Progress) else display, message)


def _print(console: Console, text: str) -> None:
    """Print text in which nothing is markup: it may be another party's."""
    console.print(text, markup=False, emoji=False, highlight=False)
