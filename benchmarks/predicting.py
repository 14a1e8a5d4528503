"""Whether `fedcollm predict` answers as `fedcollm evaluate` counts, item by item, and how fast it is beside scoring.

    python -m benchmarks.predicting RUN_DIR [--role slm] [--pairs 3]

The test examples of a finished run of `icd10` are written as a CSV table without their answers, and predicted from it;
then `predict` and `score` take the same batches in turn, in one process.
"""

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fedcollm.data.catalogue import load_pool
from fedcollm.data.partition import split
from fedcollm.runs.directory import read_config
from fedcollm.runs.predict import Options, model_directory, predict_table
from fedcollm.runs.predictor import Predictor
from fedcollm.runs.runner import evaluate_run
from fedcollm.training.fine_tuning import evaluate


def predicted(run: Path, role: str, texts: Sequence[str], folder: Path) -> list[str]:
    """Return the prediction of each text, by way of a CSV table with the task's one column."""
    table, out = folder / "rows.csv", folder / "predictions.csv"
    with table.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["description"], *([text] for text in texts)])
    predict_table(run, table, out, Options((role,), device="cpu"))
    with out.open(newline="", encoding="utf-8") as stream:
        return [row["prediction"] for row in csv.DictReader(stream)]


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds that work takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(run: Path, role: str, pairs: int) -> dict[str, Any]:
    """Return how many of a run's test examples get the same outcome, and the CPU seconds of both ways."""
    config = read_config(run)
    examples = split(load_pool(config.task, config.seed), config.task, config.seed).test
    score, model = evaluate_run(run, role), Predictor.load(model_directory(run, role), "cpu")
    with tempfile.TemporaryDirectory() as folder:
        answers = predicted(run, role, [example.prompt.removesuffix(":") for example in examples], Path(folder))
    right = [float(answer == example.label) for answer, example in zip(answers, examples, strict=True)]
    same = sum(ours == score.outcomes[example.id] for ours, example in zip(right, examples, strict=True))
    size = model.portable.batch_size
    batches = model.batches(examples)

    def scores() -> None:
        with torch.inference_mode():
            evaluate(model.modality, model.model, examples, size)

    def predictions() -> None:
        for batch in batches:
            model.predict_examples([examples[i] for i in batch])

    taken = [(seconds(scores), seconds(predictions)) for _ in range(pairs)]
    return {
        "role": role,
        "examples": len(examples),
        "same": same,
        "accuracy": sum(right) / len(right),
        "seconds_scoring": [one for one, _ in taken],
        "seconds_predicting": [other for _, other in taken],
    }


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--role", default="slm")
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    print(json.dumps(compare(options.run, options.role, options.pairs)))


if __name__ == "__main__":
    main()
