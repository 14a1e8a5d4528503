"""Measurements during a run: a stream of optimizer steps for listeners, and the peak memory of this process.

    with listening(print):
        fedcollm.run(config)

Without a listener, nothing is computed and nothing is copied from the device.
"""

import contextlib
import contextvars
import sys
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """One optimizer step, as a training loop reports it to listeners.

    Attributes:
        where: the loop that made the step, such as `client 2, round 3` or `distillation, round 3`.
        index: number of the step within that loop, starting at 1.
        total: number of steps in that loop.
        losses: loss name to its value, a scalar that may still be on the device.
        learning_rate: the learning rate used in this step.
        rows: number of supervised rows (tokens, frames, images) that one model saw in this step.
        seconds: wall-clock time since the previous step, data loading included.
        gradient_norms: model name to the L2 norm of its gradient before clipping, which may still be on the device.
    """

    where: str
    index: int
    total: int
    losses: Mapping[str, Any]
    learning_rate: float
    rows: int
    seconds: float
    gradient_norms: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the step as plain numbers. This waits for the device to finish the step."""
        return {
            "where": self.where,
            "step": self.index,
            "steps": self.total,
            "losses": {name: float(value) for name, value in self.losses.items()},
            "learning_rate": self.learning_rate,
            "rows": self.rows,
            "rows_per_second": self.rows / self.seconds if self.seconds else None,
            "gradient_norms": {name: float(value) for name, value in self.gradient_norms.items()},
        }


Listener = Callable[[Step], None]
_listeners: contextvars.ContextVar[tuple[Listener, ...]] = contextvars.ContextVar("listeners", default=())


@contextlib.contextmanager
def listening(listener: Listener) -> Generator[None, None, None]:
    """Call the listener after every optimizer step that is made inside the `with` block."""
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


def is_heard() -> bool:
    """Return whether there is a listener."""
    return bool(_listeners.get())


def emit(step: Step) -> None:
    """Call every listener with a step."""
    for listener in _listeners.get():
        listener(step)


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process so far, in bytes.

    On systems that do not record the peak, return the current resident memory instead.
    """
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS reports bytes, Linux KiB
