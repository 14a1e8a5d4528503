"""Measure rows with defences, and write `robustness.json` and `robustness.html`."""

import argparse
import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.robustness.defences import DEFENCES
from benchmarks.robustness.plots import write_page
from benchmarks.robustness.rows import ROWS
from benchmarks.robustness.runs import means, measure, read_all
from fedcollm.config.yaml_text import read_yaml


def main() -> int:
    """0, also if runs were refused or failed: that is a result."""
    arguments = _arguments()
    if arguments.list:
        print("\n".join([*(f"{name}: {row.label}" for name, row in ROWS.items()), *DEFENCES]))
        return 0
    rows, defences = _matching(arguments.rows, ROWS), _matching(arguments.defences, DEFENCES)
    for seed in [int(seed) for seed in arguments.seeds.split(",") if seed]:  # the first seed of all comes first
        for row in rows:
            for defence in defences:
                result = measure(arguments.out, (row, defence, seed), arguments.config, _overrides(arguments))
                print(f"{row}  {defence}  seed {seed}: {_told(result)}", flush=True)
    _write(arguments.out)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.robustness", description=__doc__)
    parser.add_argument("--rows", default="clean-4,labels-random-60-1of4", help="names, or patterns with *")
    parser.add_argument("--defences", default="none", help="names, or patterns with *")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2; empty: only write what there is")
    parser.add_argument("--config", default="icd10", help="a preset or a file, of text with labels of all examples")
    parser.add_argument("--rounds", type=int, help="fewer or more rounds than the configuration has")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the configuration")
    parser.add_argument("--out", type=Path, default=Path("runs/robustness"), help="default: runs/robustness")
    parser.add_argument("--list", action="store_true", help="print the names of all rows and defences")
    return parser.parse_args()


def _matching(patterns: str, table: Mapping[str, object]) -> list[str]:
    """The names of a table that match patterns, in the order of the patterns.

    Raises:
        SystemExit: a pattern matches nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns.split(","):
        names = fnmatch.filter(table, pattern)
        if not names:
            raise SystemExit(f"{pattern} is none of {', '.join(table)}")
        found |= dict.fromkeys(names)
    return list(found)


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keys that every run sets: the models are scored after the last round only."""
    given = dict(pair.split("=", 1) for pair in arguments.set)
    rounds = {} if arguments.rounds is None else {"federation.rounds": arguments.rounds}
    scored = {"evaluation.every": 1_000, "evaluation.clients": "never"}
    return {**scored, **rounds, **{key: read_yaml(value) for key, value in given.items()}}


def _told(result: Mapping[str, Any]) -> str:
    if "scores" not in result:
        return next(f"{word}: {result[word]}" for word in ("refused", "failed") if word in result)
    success = result["attack_success"] or {}
    parts = [f"{role} {value:.3f}" for role, value in result["scores"].items()]
    return ", ".join([*parts, *(f"attack success {role} {value:.3f}" for role, value in success.items())])


def _write(out: Path) -> None:
    """Write the means over seeds, and the plots."""
    found = means(read_all(out))
    out.mkdir(parents=True, exist_ok=True)
    (out / "robustness.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{write_page(found, out / 'robustness.html')} plots: {out / 'robustness.html'}")


if __name__ == "__main__":
    raise SystemExit(main())
