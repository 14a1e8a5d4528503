"""A case's records: made, shown and written as lines of JSON."""

import json
import statistics
import sys
import traceback
from pathlib import Path
from typing import Any

from benchmarks.speed.worker import resolve

#: Fields of a record that are shown, beside the sides of a pair.
_SHOWN = (
    "label",
    "bf16_rate",
    "milliseconds",
    "busy_share",
    "per_step",
    "finite",
    "wrong",
    "batches",
    "failing",
    "failure",
    "failed",
)


def run_case(case: dict[str, Any], file: Path) -> None:
    """Append a case's records to a file, and that it failed if it did.

    Raises:
        SystemExit: the case failed; 1.
    """
    try:
        for record in resolve(case["run"])(case):
            _write(file, case, record)
    except Exception as error:
        traceback.print_exc()
        _write(file, case, {"failed": f"{type(error).__name__}: {error}"[:600]})
        sys.exit(1)


def _write(file: Path, case: dict[str, Any], record: dict[str, Any]) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps({"part": case["part"], "title": case["title"], **record}, default=str) + "\n")
    for line in shown(record):
        print(f"    {line}", flush=True)


def shown(record: dict[str, Any]) -> list[str]:
    """Return a record in few words: a line for each side of a pair, or one for everything."""
    if "seconds" not in record or not isinstance(record["seconds"], dict):
        return [json.dumps({name: record[name] for name in _SHOWN if name in record}, default=str)[:400]]
    lines = []
    for side, seconds in record["seconds"].items():
        said = [f"{side}: {statistics.median(seconds):.3f} s"] if seconds else [f"{side}: failed"]
        if ratios := record["ratios"].get(side):
            said.append(f"ratio {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
        if side in record["share"]:
            said.append(f"{100 * record['share'][side]:.2f} % of the rate")
        said.append(f"{record['added_bytes'].get(side, 0) / 1e9:.2f} GB added")
        lines.append(", ".join([*said, *filter(None, [record["same"].get(side)])]))
    return lines + [f"{side}: {reason}" for side, reason in record["failed_sides"].items()]


def known_rate(file: Path) -> float | None:
    """Return the bfloat16 rate, in operations per second, that the part `machine` has written; None before that."""
    if not file.exists():
        return None
    records = [json.loads(line) for line in file.read_text().splitlines()]
    rates = [record["bf16_rate"] for record in records if "bf16_rate" in record]
    return rates[-1] if rates else None
