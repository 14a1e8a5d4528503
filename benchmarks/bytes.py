"""Bytes against accuracy: ways to send less, both ways, with and without secure aggregation, beside plain LoRA.

    python -m benchmarks.bytes OUT [--tasks icd10,digits] [--ways base,bits,secure] [--seeds 0,1,2]

Each run is `fedcollm run` of a preset with the keys of a way, in its own directory under OUT; those that are there are
not repeated. Secure aggregation is simulated: same bits, and a real session adds its keys, shares and signatures.
Writes OUT/bytes.json: the runs, and the mean difference to `base` over the seeds that both have, in points.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SECURE = "federation.secure_aggregation."

#: Name of a way to the keys that it changes.
WAYS: dict[str, dict[str, Any]] = {
    "base": {},
    "bits": {"federation.upload": "int4", "federation.download": "int4"},
    "fewer_bits": {"federation.upload": "int3", "federation.download": "int3"},
    "secure": {"federation.download": "int4", f"{_SECURE}simulate_quantization": "true", f"{_SECURE}bits": 4},
    "secure_3_bits_down": {
        "federation.download": "int3",
        f"{_SECURE}simulate_quantization": "true",
        f"{_SECURE}bits": 4,
    },
    "secure_rank_4": {
        "slm.adapter.rank": 4,
        "federation.download": "int4",
        f"{_SECURE}simulate_quantization": "true",
        f"{_SECURE}bits": 6,
    },
    "rank_4": {"slm.adapter.rank": 4},
    "core": {"slm.adapter.core": "true", "slm.adapter.rank": 32},
    "ffa": {"slm.adapter.freeze_a": "true"},
}

#: Examples of the largest client of a preset, of all seeds.
LARGEST = {"icd10": 96, "digits": 400}

_SCORED = {"evaluation.every": 5, "evaluation.clients": "never"}


def command(task: str, way: str, seed: int, out: Path) -> list[str]:
    """Return the command of one run."""
    keys = {**_SCORED, "seed": seed, **WAYS[way]}
    if f"{_SECURE}bits" in keys:
        keys[f"{_SECURE}max_weight"] = LARGEST[task]
    sets = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "fedcollm", "run", task, *sets, "--out", str(out), "--quiet"]


def row(task: str, way: str, seed: int, last: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a run, given the record of its last round."""
    scores = {role: last["scores"][role] for role in ("slm", "llm")}
    return {"task": task, "way": way, "seed": seed, **scores, "up": last["bytes_up"], "down": last["bytes_down"]}


def differences(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean difference of each way to `base` in points, paired by seed, and how many times less it sends."""
    found: list[dict[str, Any]] = []
    known = {(one["task"], one["way"], one["seed"]): one for one in rows}
    for task, way in dict.fromkeys((one["task"], one["way"]) for one in rows if one["way"] != "base"):
        pairs = [
            (one, known[task, "base", seed])
            for (t, w, seed), one in known.items()
            if (t, w) == (task, way) and (task, "base", seed) in known
        ]
        if not pairs:
            continue
        gains = {
            role: round(sum(100 * (a[role] - b[role]) for a, b in pairs) / len(pairs), 2) for role in ("slm", "llm")
        }
        less = {side: round(pairs[0][1][side] / pairs[0][0][side], 2) for side in ("up", "down")}
        found.append({"task": task, "way": way, "seeds": len(pairs), **gains, "times_less": less})
    return found


def main() -> None:
    """Run what is not there yet, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name, default in (("tasks", "icd10,digits"), ("ways", "base,bits,secure"), ("seeds", "0,1,2")):
        parser.add_argument(f"--{name}", default=default, type=lambda text: text.split(","))
    given, rows = parser.parse_args(), list[dict[str, Any]]()
    for task in given.tasks:
        for seed in map(int, given.seeds):
            for way in given.ways:
                place = given.out / f"{task}-{way}-{seed}"
                if not (place / "report.html").exists():
                    subprocess.run(command(task, way, seed, place), check=True)
                last = (place / "rounds.jsonl").read_text(encoding="utf-8").splitlines()[-1]
                rows.append(row(task, way, seed, json.loads(last)))
                table = {"rows": rows, "differences": differences(rows)}
                (given.out / "bytes.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(differences(rows), indent=1))


if __name__ == "__main__":
    main()
