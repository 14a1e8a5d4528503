"""Measure rows and write `benchmarks/RESULTS.md`."""

import argparse
import importlib
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.speed.machine import describe
from benchmarks.speed.pairs import THREADS, SideError, measure
from benchmarks.speed.results import COLUMNS, TABLE, line, remember_rates, render, store

ROOT = Path(__file__).resolve().parents[2]
ROWS = {
    "B1": "fine_tuning",
    "B2": "distillation",
    "B3": "scoring",
    "B4": "simulation",
    "B5": "end_to_end",
    "B6": "modalities",
}


def main() -> int:
    """1 if a side failed or the two sides of a case differ."""
    arguments = _arguments()
    if arguments.render:
        render()
        return 0
    command = shlex.join(["python", "-m", "benchmarks.speed", *sys.argv[1:]])
    machine = remember_rates(describe(THREADS))
    failures = 0
    for case in _cases(arguments):
        print(f"{case['row']}  {case['title']}", flush=True)
        if missing := [path for path in case.get("needs") or [] if not (ROOT / path).exists()]:
            print(f"    skipped: {', '.join(missing)} is not there", flush=True)
            continue
        repetitions = arguments.repetitions or (5 if arguments.long else 3)
        outcome = _outcome(case, min(repetitions, case.get("repetitions", repetitions)))
        failures += "failed" in outcome
        store(case, outcome, machine, command)
        _say(line({**case, **outcome}, machine))
    render()
    print(f"written: {TABLE.relative_to(ROOT)}")
    return int(failures > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--long", action="store_true", help="all cases, five repetitions: hours")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--only", default="", help="cases whose title has this text")
    parser.add_argument("--repetitions", type=int, help="timed pairs a case")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the table from stored results")
    return parser.parse_args()


def _cases(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    forms = ("short", "long") if arguments.long else ("short",)
    modules = [importlib.import_module(f"benchmarks.speed.{ROWS[row]}") for row in arguments.rows.split(",")]
    cases = [case for module in modules for case in module.CASES]
    return [case for case in cases if case["form"] in forms and arguments.only in case["title"]]


def _outcome(case: dict[str, Any], repetitions: int) -> Mapping[str, Any]:
    """What was measured, or why there is nothing."""
    try:
        return measure(case, repetitions)
    except SideError as error:
        print(error, file=sys.stderr)
        return {"failed": str(error).strip().rpartition("\n")[2]}
    except ValueError as error:
        return {"failed": f"the sides differ: {error}"}


def _say(cells: list[str]) -> None:
    for name, cell in zip(COLUMNS[1:], cells[1:], strict=True):
        if cell:
            print(f"    {name}: {cell}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
