"""The commands `fedcollm report` and `fedcollm evaluate`: the results of finished runs."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from fedcollm.cli.options import AcceptChangedData, Json, Quiet, argument, option
from fedcollm.errors import UserError


def report(
    runs: Annotated[
        list[Path], argument(metavar="RUN_DIR...", help="run directories, or directories that hold several")
    ],
    out: Annotated[Path | None, option("--out", help="HTML file; default: report.html in the first directory")] = None,
) -> None:
    """Write one self-contained HTML file with tables and plots of one or more runs."""
    from fedcollm.cli.terminal import screen
    from fedcollm.progress import shown
    from fedcollm.runs.directory import REPORT

    file = out or runs[0] / REPORT
    with shown(screen(silent=False)):
        from fedcollm.report import write_report  # its plots take a while to import

        written = write_report(runs, file)
    print(written)


def evaluate(
    run_dir: Annotated[Path, argument(metavar="RUN_DIR")],
    role: Annotated[str, option("--role", help="slm or llm")] = "slm",
    examples: Annotated[Path | None, option("--write-examples", help="write the test examples as JSONL")] = None,
    harness: Annotated[
        bool, option("--harness", help="score with lm-evaluation-harness too, and compare item by item")
    ] = False,
    accept_changed_data: AcceptChangedData = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score a run's adapter on the run's own test examples."""
    from fedcollm.cli.terminal import screen
    from fedcollm.progress import shown
    from fedcollm.runs.runner import evaluate_run

    if harness:
        _evaluate_with_harness(run_dir, role, examples, quiet, as_json)
        return
    with shown(screen(quiet or as_json)):
        score = evaluate_run(run_dir, role, examples, accept_changed_data=accept_changed_data)
    values = {name: score.mean(name) for name in score.sums}
    if as_json:
        known = {name: None if math.isnan(value) else value for name, value in values.items()}  # JSON has no NaN
        print(json.dumps({"role": role, "examples": score.count, **known}))
    elif not quiet:
        means = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(f"{role}: {means} on {score.count} examples")


def _evaluate_with_harness(run_dir: Path, role: str, examples: Path | None, quiet: bool, as_json: bool) -> None:
    from fedcollm.cli.tables import parity_table
    from fedcollm.cli.terminal import output, screen
    from fedcollm.progress import shown
    from fedcollm.runs.harness import evaluate_with_harness

    if examples:
        raise UserError(
            f"--harness already writes the test examples to {run_dir / 'harness'}. Leave out --write-examples."
        )
    with shown(screen(quiet or as_json)):
        parity = evaluate_with_harness(run_dir, role)
    if as_json:
        print(json.dumps({"role": role} | asdict(parity)))
    elif not quiet:
        output().print(parity_table(role, parity))
