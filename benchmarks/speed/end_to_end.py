"""B5: whole programs from the start of the process to a stated test accuracy on `icd10`, four clients, seed 0.

Ours is `fedcollm run icd10`, whose rounds.jsonl is watched; the peer is `assembly.py`, the same algorithm put together
from Trainer, PEFT and lm-evaluation-harness. Both score the global SLM and the LLM on the same 300 test items after
every round, ours before the first one too. The clock stops with the line of the first round whose SLM is accurate
enough; the program goes on until its LLM is as well, and is then stopped.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_POLLING_SECONDS = 0.02

CASES = (
    {
        "row": "B5",
        "title": "icd10 to SLM accuracy 0.55",
        "peer_name": "Trainer + PEFT + lm-evaluation-harness",
        "ours": "benchmarks.speed.end_to_end:ours",
        "peer": "benchmarks.speed.end_to_end:assembly",
        "same": "benchmarks.speed.end_to_end:same",
        "target": "≥ 3 ×",
        "form": "long",
        "separate": True,
        "cold": True,
        "repetitions": 1,
        "accuracy": {"slm": 0.55, "llm": 0.60},
        "rounds": 10,
        "settings": {},
    },
)


def ours(case: dict) -> Callable[[], dict]:
    """`fedcollm run icd10`, in a process of its own."""

    def repeat() -> dict:
        with tempfile.TemporaryDirectory() as directory:
            place = Path(directory) / "run"
            program = ["-m", "fedcollm", "run", "icd10", "--quiet", "--out", str(place)]
            return _watch([*program, *_options(case)], place, case["accuracy"])

    return repeat


def assembly(case: dict) -> Callable[[], dict]:
    """`assembly.py`, in a process of its own."""

    def repeat() -> dict:
        with tempfile.TemporaryDirectory() as directory:
            program = ["-m", "benchmarks.speed.assembly", "--out", directory]
            return _watch([*program, *_options(case)], Path(directory), case["accuracy"])

    return repeat


def _options(case: dict) -> list[str]:
    values = {"federation.rounds": case["rounds"], **case["settings"]}
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def _watch(arguments: list[str], directory: Path, wanted: Mapping[str, float]) -> dict[str, Any]:
    """Run a Python program until its last record is accurate enough.

    Returns:
        Seconds to the SLM's accuracy and to the LLM's, rounds they took, scores by round, and the peak memory.

    Raises:
        RuntimeError: the program ended before.
    """
    with tempfile.TemporaryFile("w+") as log:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log)
        seen: list[tuple[float, dict]] = []
        peak_bytes = 0
        try:
            while process.poll() is None and len(_reached(seen, wanted)) < len(wanted):
                time.sleep(_POLLING_SECONDS)
                records = _records(directory / "rounds.jsonl")
                seen += [(time.perf_counter() - start, record) for record in records[len(seen) :]]
                peak_bytes = max(peak_bytes, _peak_bytes(process.pid))
        finally:
            process.terminate()
            process.wait()
        reached = _reached(seen, wanted)
        if len(reached) < len(wanted):
            log.seek(0)
            raise RuntimeError(f"{arguments[1]} reached {reached}, not {dict(wanted)}: {log.read()[-3000:]}")
    return _figures(seen, reached) | {"peak_bytes": peak_bytes}


def _figures(seen: list[tuple[float, dict]], reached: Mapping[str, int]) -> dict[str, Any]:
    return {
        "seconds": seen[reached["slm"]][0],
        "llm_seconds": seen[reached["llm"]][0],
        **{f"{role}_round": seen[position][1]["round"] for role, position in reached.items()},
        "scores": "; ".join(f"{r['round']}: {r['scores']['slm']:.3f}, {r['scores']['llm']:.3f}" for _, r in seen),
        "best": {role: max(record["scores"][role] for _, record in seen) for role in reached},
        "record_seconds": [round(seconds, 2) for seconds, _ in seen],
    }


def _reached(seen: list[tuple[float, dict]], wanted: Mapping[str, float]) -> dict[str, int]:
    """Role to the position of the first record that is accurate enough, for roles that have one."""
    found: dict[str, int] = {}
    for position, (_, record) in enumerate(seen):
        for role, accuracy in wanted.items():
            if role not in found and record["scores"][role] >= accuracy:
                found[role] = position
    return found


def _records(file: Path) -> list[dict]:
    """Whole lines of a file that may not be there yet."""
    with contextlib.suppress(OSError):
        return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return []


def _peak_bytes(process: int) -> int:
    """`VmHWM` of a process; 0 if it is gone."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
    return 0


def same(one: dict, other: dict) -> str:
    """Both reached the accuracy; what rounds they took is said.

    Raises:
        ValueError: the two took numbers of rounds so different that they can't be the same algorithm.
    """
    rounds = one["slm_round"], other["slm_round"]
    if max(rounds) > 2 * min(rounds) + 1:
        raise ValueError(f"{rounds[0]} rounds and {rounds[1]}: {one['scores']} | {other['scores']}")
    return (
        f"accuracy reached in round {rounds[0]} and {rounds[1]}; SLM, LLM by round {one['scores']} | {other['scores']}"
    )
