"""Synthetic run directories, written as a run writes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedcollm.config import RunConfig
from fedcollm.messages import RoundRecord
from fedcollm.runs import directory as run_directory

ENVIRONMENT = {
    "parameters": {"slm": {"adapter": 500, "base": 100_000}, "llm": {"adapter": 900, "base": 400_000}},
    "versions": {"torch": "2.13.0"},
    "device": "cpu",
    "dtype": {"slm": "bfloat16", "llm": "float32"},
    "threads": 2,
    "cpu": "a cpu",
}
DATA = {
    "clients": {"0": {"cat": 3, "dog": 1}, "1": {"bird": 4}},
    "public": {"bird": 1, "cat": 1, "dog": 1},
    "unlabelled": 0,
    "test": 100,
    "duplicates_removed": 7,
    "notes": ["a note on the data"],
}
CONFUSION = {
    "slm": [["cat", "cat", 3], ["cat", "dog", 1], ["dog", "dog", 2], ["bird", "cat", 2], ["bird", "bird", 2]],
    "llm": [["cat", "cat", 4], ["dog", "dog", 2], ["bird", "bird", 4]],
}


def record(index: int, slm: float | None, llm: float | None = None) -> RoundRecord:
    """A record with round numbers; round 0 has neither losses nor bytes."""
    scores = {role: value for role, value in (("slm", slm), ("llm", llm)) if value is not None}
    if index == 0:
        return RoundRecord(0, scores, seconds={"evaluation": 1.0}, peak_memory_bytes=1_000_000)
    scores |= {"clients": slm - 0.1} if slm is not None else {}
    losses = {"client": 2.0 / index} | ({"slm": 1.0, "llm": 0.5, "kl": 0.25} if llm is not None else {})
    seconds = {"clients": 2.0, "distillation": 3.0, "evaluation": 1.0}
    return RoundRecord(index, scores, losses, ("0", "1"), 2000, 2000, seconds, index * 1_000_000)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run below tmp_path from its records, one file after the other as a run does."""

    def make(place: str, records: list[RoundRecord], bare: bool = False, **config: Any) -> Path:
        directory = tmp_path / place
        directory.mkdir(parents=True)
        run_directory.start(directory, RunConfig.model_validate(config))
        if not bare:
            run_directory.write_json(directory, run_directory.ENVIRONMENT, ENVIRONMENT)
            run_directory.write_json(directory, run_directory.DATA, DATA)
        for each in records:
            run_directory.save_round(directory, each, {"slm": {"a": torch.zeros(1)}})
        if not bare and len(records) > 1:
            run_directory.write_json(directory, run_directory.CONFUSION, CONFUSION)
        return directory

    return make


@pytest.fixture
def make_record() -> Callable[..., RoundRecord]:
    return record
