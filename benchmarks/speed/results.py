"""Results of single cases, kept as JSON a row, and `benchmarks/RESULTS.md` made from what there is."""

import json
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).resolve().parents[1]
RESULTS = DIRECTORY / "results"
TABLE = DIRECTORY / "RESULTS.md"

HEAD = """# Speed: fedcollm beside its peers

Written by `python -m benchmarks.speed`; do not edit. Both sides of a case were measured in one session, in processes of
their own with as many threads as cores (B6: one): one untimed repetition each, then in turn (A B A B). **ratio** is the
peer's seconds divided by ours, for each repetition: median [least, most]. **seconds** are medians; in parentheses,
those of the processor, which other work on the machine disturbs less. **peak memory** is the
resident memory of the whole process while it works, including libraries and loaded models; in parentheses, what the
work adds to the loaded process; then our memory divided by the peer's. **rate** is useful floating-point operations per
second, as a share of the machine's best matrix-product rate in the same dtype, for us and for the peer.

The useful operations of an epoch are 4 (L T + H S) per model, with L parameters of the frozen linear layers except the
head, T tokens that must be read, H parameters of the head and S supervised positions: a product for the forward pass,
and one for the gradient of its input. Padding, logits of prompts, adapters and attention do not count, on either side.
"""


def store(case: Mapping[str, Any], outcome: Mapping[str, Any], machine: Mapping[str, Any], command: str) -> None:
    """Keep a case's outcome under its title, in place of an older one."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{case['row']}.json"
    entries = json.loads(file.read_text()) if file.is_file() else {}
    kept = ("title", "peer_name", "target", "memory_target", "dtype", "form")
    entries[case["title"]] = {
        **{name: case[name] for name in kept if name in case},
        **outcome,
        "measured": {
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "commit": _commit(),
            "command": command,
            "machine": _identity(machine),
        },
    }
    file.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")


def remember_rates(machine: Mapping[str, Any]) -> dict[str, Any]:
    """The machine with the best rates that it has ever shown: whatever else runs on it only lowers them.

    They are kept in `benchmarks/results/machine.json`, a list of machines that differ in more than their rates.
    """
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "machine.json"
    known = json.loads(file.read_text()) if file.is_file() else []
    others = [entry for entry in known if _identity(entry) != _identity(machine)]
    earlier = [entry["flop_rates"] for entry in known if _identity(entry) == _identity(machine)]
    best = {
        dtype: {path: max([rate, *(rates[dtype].get(path, 0.0) for rates in earlier)]) for path, rate in paths.items()}
        for dtype, paths in machine["flop_rates"].items()
    }
    merged = {**machine, "flop_rates": best}
    file.write_text(json.dumps([*others, merged], indent=1) + "\n")
    return merged


def _identity(machine: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in machine.items() if name != "flop_rates"}


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty=, changed"]
    return subprocess.run(command, cwd=DIRECTORY, capture_output=True, text=True).stdout.strip() or "unknown"


def meets(ratio: float, target: str) -> bool:
    """Whether a ratio meets a target such as "≥ 4 ×".

    >>> meets(4.2, "≥ 4 ×"), meets(0.61, "≤ 0.6 ×")
    (True, False)
    """
    sign, bound, _ = target.split()
    return ratio >= float(bound) if sign == "≥" else ratio <= float(bound)


def line(entry: Mapping[str, Any], machine: Mapping[str, Any]) -> list[str]:
    """The cells of a case's line in the table, on the machine that it was measured on."""
    if "failed" in entry:
        return [entry["title"], *[""] * 5, f"FAILED: {entry['failed']}", ""]
    ratio = statistics.median(entry["ratios"])
    sides = entry["ours"], entry["peer"]
    memory = sides[0]["peak_bytes"] / sides[1]["peak_bytes"]
    return [
        entry["title"],
        _seconds(sides),
        f"{ratio:.2f} [{min(entry['ratios']):.2f}, {max(entry['ratios']):.2f}]",
        _verdict(ratio, entry.get("target")),
        f"{_gigabytes(sides)}: {memory:.2f}",
        _verdict(memory, entry.get("memory_target")),
        entry["same"],
        _share(entry, machine["flop_rates"]),
    ]


COLUMNS = ("case", "seconds, ours / peer", "ratio", "target", "peak memory, GB, ours / peer", "target", "same?", "rate")


def _verdict(ratio: float, target: str | None) -> str:
    return "" if target is None else f"{target} {'met' if meets(ratio, target) else 'MISSED'}"


def _seconds(sides: Sequence[Mapping[str, Any]]) -> str:
    """Seconds on the clock of both sides, and in parentheses those of the processor, where they are known.

    >>> _seconds([{"seconds": 1.5}, {"seconds": 2.25}])
    '1.5 / 2.25'
    >>> _seconds([{"seconds": 1.5, "processor_seconds": 1.25}, {"seconds": 2.25, "processor_seconds": 2.0}])
    '1.5 / 2.25 (1.25 / 2)'
    """
    names = ("seconds", "processor_seconds") if all("processor_seconds" in side for side in sides) else ("seconds",)
    clock, *processor = [" / ".join(f"{side[name]:.3g}" for side in sides) for name in names]
    return clock + "".join(f" ({told})" for told in processor)


def _gigabytes(sides: Sequence[Mapping[str, Any]]) -> str:
    """Peak memory of both sides, and how much of it came after loading, where that is known."""
    peaks = " / ".join(f"{side['peak_bytes'] / 1e9:.2f}" for side in sides)
    if not all("added_bytes" in side for side in sides):
        return peaks
    return f"{peaks} (+" + " / ".join(f"{side['added_bytes'] / 1e9:.2f}" for side in sides) + ")"


def _share(entry: Mapping[str, Any], rates: Mapping[str, Mapping[str, float]]) -> str:
    """Useful operations a second as a share of the measured matrix-product rate."""
    operations, dtype = entry["ours"].get("operations"), entry.get("dtype")
    if not operations or not dtype:
        return ""
    best = max(rates[dtype].values())
    return " / ".join(f"{100 * operations / entry[side]['seconds'] / best:.0f} %" for side in ("ours", "peer"))


def render() -> None:
    """Write `RESULTS.md` from all stored rows."""
    machines = json.loads((RESULTS / "machine.json").read_text())
    parts: list[str] = []
    for file in sorted(RESULTS.glob("B*.json")):
        stored = json.loads(file.read_text())
        entries = [(stored[title], _measured_on(stored[title], machines)) for title in sorted(stored)]
        lines = [line(entry, machines[number]) for entry, number in entries]
        parts += [f"## {file.stem}", _table(lines), _provenance(entries)]
    told = [_machine(number, machine) for number, machine in enumerate(machines, 1)]
    TABLE.write_text("\n\n".join([HEAD.strip(), *parts, "## Machines", *told]) + "\n")


def _measured_on(entry: Mapping[str, Any], machines: Sequence[Mapping[str, Any]]) -> int:
    return next(i for i, machine in enumerate(machines) if _identity(machine) == entry["measured"]["machine"])


def _table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (COLUMNS, ["---"] * len(COLUMNS), *lines))


def _provenance(entries: Sequence[tuple[Mapping[str, Any], int]]) -> str:
    """When, at which commit, on which machine and by which command each case was measured."""
    made = [(entry["measured"], number + 1) for entry, number in entries]
    lines = [f"- {m['date']}, commit {m['commit']}, machine {number}, `{m['command']}`" for m, number in made]
    return "\n".join(dict.fromkeys(lines))


def _machine(number: int, machine: Mapping[str, Any]) -> str:
    """A machine, its rates and its versions."""
    lines = [
        f"**{number}**: {machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, "
        f"{machine['system']}; {', '.join(f'{name} {version}' for name, version in machine['versions'].items())}.",
        *(
            f"Square matrix products, {dtype}, GFLOP/s: "
            + ", ".join(f"{path} {rate / 1e9:.0f}" for path, rate in paths.items())
            + "."
            for dtype, paths in machine["flop_rates"].items()
        ),
    ]
    return "  \n".join(lines)
