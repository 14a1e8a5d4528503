"""What is measured while a run goes on: a stream of steps for whoever listens, and this process's peak memory.

    with listening(print):
        fedcollm.run(config)

Nothing is computed or copied from a device where nobody listens.
"""

import contextlib
import contextvars
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """One optimizer step, as the loop hands it to listeners.

    Attributes:
        where: which loop it belongs to, such as `client 2, round 3` or `distillation, round 3`.
        index: number of the step in that loop, from 1.
        total: number of steps of the loop.
        losses: name to a scalar, perhaps still on its device.
        learning_rate: of the step.
        rows: supervised rows of the step (tokens, frames, images), of one model.
        seconds: wall-clock since the step before, data included.
        gradient_norms: name of the model to the L2 norm of its gradient before it is clipped, perhaps on its device.
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
        """Return plain numbers only; this waits for the device."""
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
def listening(listener: Listener) -> Iterator[None]:
    """Call the listener after every optimizer step made inside."""
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


def is_heard() -> bool:
    """Return whether anybody listens."""
    return bool(_listeners.get())


def emit(step: Step) -> None:
    """Hand a step to everybody who listens."""
    for listener in _listeners.get():
        listener(step)


def peak_memory_bytes() -> int:
    """Return the highest resident memory of this process so far, in bytes.

    Where the system does not record the highest value, this is the memory resident now.
    """
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux KiB
