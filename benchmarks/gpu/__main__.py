"""Measure parts on the device that is there, and write one line of JSON a record to DIR/results.jsonl."""

import argparse
import importlib
import json
import multiprocessing
import os
import time
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from benchmarks.gpu.records import known_rate, run_case

ROOT = Path(__file__).resolve().parents[2]
PARTS = {
    "machine": "machine",
    "nan": "attention",
    "speed": "speed",
    "variants": "variants",
    "profile": "profile",
    "professions": "professions",
    "spread": "spread",
}

#: The last one: that importing torch does not start CUDA in the process that others are copies of.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}

#: Modules that take long to import: one process does so once, and every case starts as a copy of it.
_PRELOADED = [f"benchmarks.gpu.{module}" for module in PARTS.values()] + [
    "transformers.trainer",
    "trl.trainer.sft_trainer",
    "trl.experimental.gkd",
    "lm_eval.models.huggingface",
    "lm_eval.evaluator",
]


def main() -> int:
    """Return 1 if a case failed, or took longer than it may."""
    arguments = _arguments()
    os.environ.update({name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()})
    arguments.out.mkdir(parents=True, exist_ok=True)
    file, context, failures = arguments.out / "results.jsonl", _context(), 0
    for part in arguments.parts.split(","):
        for case in importlib.import_module(f"benchmarks.gpu.{PARTS[part]}").cases(arguments.tiny):
            if arguments.only not in case["title"]:
                continue
            print(f"{part}  {case['title']}", flush=True)
            if missing := [path for path in case.get("needs", ()) if not (ROOT / path).exists()]:
                print(f"    skipped: {', '.join(missing)} is not there", flush=True)
                continue
            start = time.perf_counter()
            done = _in_a_process(context, case | {"rate": known_rate(file)}, file, arguments.limit)
            failures += not done
            print(f"    {'done' if done else 'FAILED'} in {time.perf_counter() - start:.0f} s", flush=True)
    print(f"written: {file}")
    return int(failures > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--out", type=Path, required=True, help="directory of results.jsonl, which grows")
    parser.add_argument("--only", default="", help="cases whose title has this text")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that a case may take (default: 300)")
    parser.add_argument("--tiny", action="store_true", help="tiny random networks, seconds a case, on a CPU too")
    return parser.parse_args()


def _context() -> BaseContext:
    """Return how processes start: as copies of one that has imported everything, where the system can do that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _in_a_process(context: BaseContext, case: dict[str, Any], file: Path, limit_seconds: float) -> bool:
    """Return whether the case came to its end within its time; what it recorded until then stays."""
    process = context.Process(target=run_case, args=(case, file))  # pyright: ignore[reportAttributeAccessIssue]
    process.start()
    process.join(limit_seconds)
    if process.is_alive():
        process.kill()
        process.join()
        with file.open("a") as lines:
            failed = {"failed": f"stopped after {limit_seconds:g} s"}
            lines.write(json.dumps({"part": case["part"], "title": case["title"], **failed}) + "\n")
    return process.exitcode == 0


if __name__ == "__main__":
    raise SystemExit(main())
