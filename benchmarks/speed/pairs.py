"""Two sides measured in turn: A B A B, ratio pair by pair."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from benchmarks.speed.worker import resolve

THREADS = "2"
SIDES = ("ours", "peer")


class SideError(RuntimeError):
    """A side's process ended early; the message is the end of what it printed."""


@dataclass
class Side:
    """A worker process, and what it said of loading."""

    process: subprocess.Popen[str]
    log: IO[str]
    loading: dict[str, Any] = field(default_factory=dict)

    def answer(self) -> dict[str, Any]:
        """The next JSON line of the process.

        Raises:
            SideError: it ended instead.
        """
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            self.process.wait()
            self.log.seek(0)
            raise SideError("".join(self.log.readlines()[-25:]))
        return json.loads(line)

    def run(self) -> dict[str, Any]:
        """The figures of one repetition."""
        assert self.process.stdin
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return self.answer()


@contextlib.contextmanager
def running(case: dict, side: str) -> Iterator[Side]:
    """A side's process, loaded; threads are pinned, and no hub is asked for anything."""
    threads = case.get("threads", THREADS)
    pinned = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", "benchmarks.speed.worker", case[side], json.dumps(case)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, env=os.environ | pinned, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            started = Side(process, log)
            started.loading = started.answer()
            yield started
        finally:
            if process.stdin:
                process.stdin.close()  # it ends with its standard input
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()


def measure(case: dict, repetitions: int) -> dict[str, Any]:
    """A case's ratio, with the figures of both sides.

    Args:
        case: a pair, see the package.
        repetitions: pairs of timed repetitions, after one untimed repetition of each side.

    Returns:
        Seconds of both sides in the order measured, the ratios peer / ours, peak memory, and how closely they agree.

    Raises:
        SideError: a side failed.
        ValueError: the sides don't compute the same.
    """
    rounds = _apart(case, repetitions) if case.get("separate") else _together(case, repetitions)
    notes = [resolve(case["same"])(pair["ours"], pair["peer"]) for pair in rounds]
    seconds = {side: [pair[side]["seconds"] for pair in rounds] for side in SIDES}
    return {
        "ratios": [peer / ours for ours, peer in zip(seconds["ours"], seconds["peer"], strict=True)],
        "same": notes[-1],
        **{side: _summary([pair[side] for pair in rounds]) for side in SIDES},
    }


def _together(case: dict, repetitions: int) -> list[dict[str, Any]]:
    """Both processes are loaded, one of them computes."""
    with running(case, "ours") as ours, running(case, "peer") as peer:
        sides = dict(zip(SIDES, (ours, peer), strict=True))
        if not case.get("cold"):
            for side in sides.values():
                side.run()
        return [{name: side.loading | side.run() for name, side in sides.items()} for _ in range(repetitions)]


def _apart(case: dict, repetitions: int) -> list[dict[str, Any]]:
    """One process at a time is loaded, warmed up and timed once."""
    rounds = []
    for _ in range(repetitions):
        pair = {}
        for name in SIDES:
            with running(case, name) as side:
                if not case.get("cold"):
                    side.run()
                pair[name] = side.loading | side.run()
        rounds.append(pair)
    return rounds


def _summary(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of every repetition, their medians, largest memory, and the plain figures of the last repetition."""
    plain = {name: value for name, value in figures[-1].items() if isinstance(value, (int, float, str))}
    memory = {name: max(f[name] for f in figures) for name in plain if name.endswith("_bytes")}
    medians = {name: statistics.median(f[name] for f in figures) for name in plain if name.endswith("seconds")}
    return {**plain, **memory, **medians, "each_seconds": [f["seconds"] for f in figures]}
