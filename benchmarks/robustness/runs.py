"""One run of a row with a defence and a seed, and the JSON file that says what came of it."""

import json
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.robustness.data_attacks import TARGET, triggered
from benchmarks.robustness.defences import settings
from benchmarks.robustness.rows import ROWS
from fedcollm.config.loading import load_config
from fedcollm.errors import RoundFailedError, UserError
from fedcollm.runs.build import Inputs
from fedcollm.runs.directory import ROUNDS
from fedcollm.runs.runner import restore, rounds
from fedcollm.training.fine_tuning import predict


def result_file(out: Path, row: str, defence: str, seed: int) -> Path:
    """Where the result of a run is."""
    return out / row / f"{defence}-{seed}.json"


def measure(out: Path, run: tuple[str, str, int], source: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a run, which is done unless its file exists.

    Args:
        out: directory of all results.
        run: row, defence and seed.
        source: preset or file of the configuration.
        overrides: further dotted keys.
    """
    file = result_file(out, *run)
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    result = {
        "row": run[0],
        "defence": run[1],
        "seed": run[2],
        **_outcome(file.with_suffix(""), run, source, overrides),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(file)
    shutil.rmtree(file.with_suffix(""), ignore_errors=True)
    return result


def _outcome(directory: Path, run: tuple[str, str, int], source: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What came of a run: scores of each round, attack success and notes, or why it was refused or failed."""
    name, defence, seed = run
    row = ROWS[name]
    values = {"name": "robustness", "seed": seed, "task.clients": row.clients, **settings(defence, row), **overrides}
    begun, spent = time.perf_counter(), time.process_time()
    try:
        config = load_config(source, **values)
    except UserError as error:
        return {"refused": str(error)}
    inputs, resume = Inputs(stand_in=row.stand_in(), private=row.private(seed)), (directory / ROUNDS).exists()
    if not resume:
        shutil.rmtree(directory, ignore_errors=True)
    try:
        records = [asdict(record) for record in rounds(None if resume else config, directory, inputs, resume=resume)]
    except RoundFailedError as error:
        return {"failed": str(error)}
    kept = ("round", "scores", "losses", "participants", "lost", "notes")
    return {
        "set": {key: value for key, value in values.items() if key != "name"},
        "scores": records[-1]["scores"],
        "attack_success": _attack_success(directory) if name.startswith(("clean", "backdoor")) else None,
        "rounds": [{key: record[key] for key in kept} for record in records],
        "seconds": {"wall": time.perf_counter() - begun, "processor": time.process_time() - spent},
        "commit": _commit(),
    }


def _attack_success(directory: Path) -> dict[str, float]:
    """By role, the share of test examples of other labels that get the target label once they have the trigger."""
    config, federation = restore(directory, "slm", accept_changed_data=True)  # the bad client's data was changed
    pair, size = federation.server.pair, config.evaluation.batch_size
    examples = [triggered(example) for example in federation.split.test if example.answer != TARGET]
    found: dict[str, float] = {}
    for role, model in pair.models().items():
        shares = predict(pair.modality.of(role), model, examples, size, f"trigger, {role}")
        found[role] = sum(int(one.argmax()) == TARGET for one in shares) / len(examples)
    return found


def read_all(out: Path) -> list[dict[str, Any]]:
    """All results that there are."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.glob("*/*-*.json"))]


def means(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Row to defence to the mean over seeds of `slm`, `llm` and the success of attacks, and the number of `seeds`."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for result in results:
        if "scores" not in result:
            continue
        success = {f"success_{role}": value for role, value in (result["attack_success"] or {}).items()}
        found.setdefault(result["row"], {}).setdefault(result["defence"], []).append({**result["scores"], **success})
    return {row: {d: _mean(parts) for d, parts in defences.items()} for row, defences in found.items()}


def _mean(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    common = [key for key in parts[0] if all(key in part for part in parts)]
    return {key: sum(part[key] for part in parts) / len(parts) for key in common} | {"seeds": len(parts)}


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty=, changed"]
    return (
        subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip() or "unknown"
    )
