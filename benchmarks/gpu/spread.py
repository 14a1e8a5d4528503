"""Part `spread`: a round of `fedcollm run` with the LLM on one device, on all GPUs by `device_map`, and on processes.

The runs are those of the documented commands, in float32, so that their losses can be compared. A machine with one GPU
measures the first way alone; one without a GPU, the first way and two processes.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.networks import TITLES, section
from benchmarks.speed.material import SMOLLM2, needs

_TINY = {"task.private_size": 8, "task.public_size": 16, "task.test_size": 8}
_WHOLE = {"task.private_size": 8, "task.public_size": 640, "task.test_size": 200, "server.batch_size": 32}
_COMMON = {
    "task.clients": 1,
    "task.unlabelled_size": 0,
    "server.unlabelled_per_round": None,
    "federation.rounds": 1,
    "evaluation.clients": "never",
    "llm.dtype": "float32",
    "slm.dtype": "float32",
    "slm.heal": None,
}


def cases(tiny: bool) -> list[dict[str, Any]]:
    """Return a case for each pair of models."""
    pairs = [("tiny-3", "tiny-2")] if tiny else [("smollm2-30", "smollm2-10"), ("qwen-0.5b", "smollm2-10")]
    return [
        {
            "part": "spread",
            "title": f"{TITLES[llm]} spread over devices, with {TITLES[slm]}, icd10",
            "run": "benchmarks.gpu.spread:spread",
            "needs": [] if tiny else needs("icd10", SMOLLM2),
            "llm": llm,
            "slm": slm,
            "sizes": _TINY if tiny else _WHOLE,
        }
        for llm, slm in pairs
    ]


def ways(gpus: int) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """Return the start of the command line of each way, and what it sets, on a machine with so many GPUs."""
    one, count = [sys.executable, "-m", "fedcollm"], gpus or 2
    several = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "-m", "fedcollm"]
    found: dict[str, tuple[list[str], dict[str, Any]]] = {"one device": (one, {})}
    if gpus > 1:
        found[f"device_map over {gpus} GPUs"] = one, {"llm.device_map": "balanced"}
    if gpus != 1:
        found[f"{count} processes"] = several, {}
    return found


def spread(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a record for each way: the seconds of distillation, its losses, and where the LLM's base is."""
    models = {f"{role}.{key}": value for role in ("llm", "slm") for key, value in section(case[role]).items()}
    models = {"slm.layers": None} | models
    first: dict[str, float] = {}
    for name, (start, more) in ways(torch.cuda.device_count()).items():
        round_1, environment = _run(start, models | case["sizes"] | _COMMON | more)
        seconds, losses = round_1["seconds"]["distillation"], round_1["losses"]
        first = first or losses
        apart = max(abs(losses[key] - first[key]) / abs(first[key]) for key in ("slm", "llm", "kl"))
        held = environment["base_bytes"]["llm"]
        said = f"{name}: {seconds:.2f} s of distillation, losses {apart:.1e} from those of one device, {held}"
        yield {"label": said, "way": name, "distillation_seconds": seconds, "losses": losses, "base_bytes": held}


def _run(start: list[str], settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the record of round 1 and the environment of a run."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        chosen = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
        subprocess.run([*start, "run", "icd10", *chosen, "--out", str(out), "--quiet"], check=True)
        records = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
        return records[1], json.loads((out / "environment.json").read_text())
