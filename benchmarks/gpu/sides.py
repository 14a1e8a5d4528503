"""Several sides of one piece of work in one process, in turn, on one GPU."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.gpu.device import clear, peak_bytes_of
from benchmarks.speed.worker import resolve

#: Repetitions that are not counted: each warms up every shape of a batch.
_UNCOUNTED = 1

OURS = "ours"

Repeat = Callable[[], dict[str, Any]]


class Sides:
    """Sides that take turns, and what was measured of each.

    Args:
        cases: name of a side to ("MODULE:FUNCTION", its case); the first one is `ours`. Each function loads and returns
            `repeat`, as in benchmarks.speed.

    Attributes:
        seconds: name to the seconds of every counted repetition.
        added_bytes: name to what a repetition adds to the GPU's memory at its peak, the largest of all repetitions.
        figures: name to everything that the first repetition said.
        failed: name to the error of a side that failed, which is left out from then on.
    """

    def __init__(self, cases: Mapping[str, tuple[str, dict[str, Any]]]):
        self.seconds: dict[str, list[float]] = {name: [] for name in cases}
        self.added_bytes: dict[str, int] = {}
        self.figures: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}
        self._repeats: dict[str, Repeat] = {}
        for name, (function, case) in cases.items():
            self._guarded(name, lambda name=name, f=function, c=case: self._repeats.update({name: resolve(f)(c)}))

    def measure(self, repetitions: int) -> None:
        """Let every side repeat in turn."""
        for turn in range(_UNCOUNTED + repetitions):
            for name in list(self._repeats):
                self._guarded(name, lambda name=name, turn=turn: self._once(name, turn >= _UNCOUNTED))

    def ratios(self) -> dict[str, list[float]]:
        """Return each side's seconds over ours, repetition by repetition."""
        ours = self.seconds[OURS]
        whole = {name: times for name, times in self.seconds.items() if name != OURS and len(times) == len(ours)}
        return {name: [t / o for t, o in zip(times, ours, strict=True)] for name, times in whole.items()}

    def record(self, same: Callable[[dict, dict], str], rate: float | None) -> dict[str, Any]:
        """Return the figures of all sides.

        Args:
            same: says how closely two sides' figures agree, or raises ValueError.
            rate: of the device, in operations per second; None: shares of it are left out.
        """
        ours = self.figures.get(OURS, {})
        medians = {name: statistics.median(times) for name, times in self.seconds.items() if times}
        operations, tokens = ours.get("operations"), ours.get("tokens")
        return {
            "seconds": self.seconds,
            "ratios": self.ratios(),
            "added_bytes": self.added_bytes,
            "tokens": tokens,
            "operations": operations,
            "share": {n: operations / s / rate for n, s in medians.items()} if operations and rate else {},
            "tokens_per_second": {n: tokens / s for n, s in medians.items()} if tokens else {},
            "same": {n: _agreement(same, ours, f) for n, f in self.figures.items() if n != OURS and ours},
            "losses": {n: f.get("losses", f.get("first")) for n, f in self.figures.items()},
            "failed_sides": self.failed,
        }

    def _once(self, name: str, counted: bool) -> None:
        figures, added = peak_bytes_of(self._repeats[name])
        self.figures.setdefault(name, figures)
        if counted:
            self.seconds[name].append(figures["seconds"])
            self.added_bytes[name] = max(self.added_bytes.get(name, 0), added)

    def _guarded(self, name: str, function: Callable[[], Any]) -> None:
        try:
            function()
        except Exception as error:
            self.failed[name] = f"{type(error).__name__}: {error}"[:300]
            self._repeats.pop(name, None)
            clear()


def _agreement(same: Callable[[dict, dict], str], ours: dict, side: dict) -> str:
    try:
        return same(ours, side)
    except ValueError as error:
        return f"DIFFERS: {str(error)[-200:]}"
