"""Part `professions`: one round of the preset, whose losses became NaN on a GPU, step by step and in other settings.

The other settings say what is to blame: another implementation of attention, PEFT's layers, a mask of true and false,
or a lower learning rate.
"""

import contextlib
import math
import random
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import fedcollm
from benchmarks.gpu.networks import section
from benchmarks.speed.material import SHARED
from fedcollm.config import RunConfig
from fedcollm.config.loading import load_config
from fedcollm.data.catalogue import build_modality, load_pool
from fedcollm.data.partition import split
from fedcollm.modalities.text import forward, likelihoods, task
from fedcollm.runs import build_models
from fedcollm.training.batches import minibatches

#: Label to keys of the configuration that it changes; `_changed` knows the rest of a label.
SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "without cuDNN": {},
    "without cuDNN, unfused": {},
    "unfused": {},
    "mask of true and false": {},
    "eager": {"llm.attention": "eager", "slm.attention": "eager"},
    "grouped": {"llm.attention": "grouped", "slm.attention": "grouped"},
    "learning rate 1e-4": {"client.learning_rate": 1e-4, "server.learning_rate": 1e-4},
}
_SIZES = {"task.clients": 2, "task.private_size": 4, "task.public_size": 4, "task.test_size": 4}
_FEW = _SIZES | {
    "task.partition.kind": "iid",
    "task.unlabelled_size": 0,
    "slm.heal": None,
    "evaluation.clients": "never",
}
_PRESETS = ("professions", "commonsense_qa", "arc_easy", "openbookqa")
_DIRECTORIES = {"professions": "mmlu", "commonsense_qa": "csqa", "openbookqa": "obqa"}


def cases(tiny: bool) -> list[dict[str, Any]]:
    """Return one round in each setting, and how often a batch of each preset has the columns that cuDNN fails on."""
    run, networks = "benchmarks.gpu.professions:one_round", {"llm": "smollm2-30", "slm": "smollm2-10"}
    if tiny:
        more = {"preset": "icd10", "llm": "tiny-3", "slm": "tiny-2", "settings": _FEW, "changed": "as it is"}
        return [
            {"part": "professions", "title": "one round of icd10", "run": run, **more},
            _columns("icd10", {"llm": "tiny-3", "slm": "tiny-2", "settings": _FEW, "needs": []}),
        ]
    rounds = [
        {
            "part": "professions",
            "title": f"one round, {label}",
            "run": run,
            "needs": ["../shared/data/mmlu"],
            "preset": "professions",
            "settings": {"task.test_size": 30} | changes if changes or label != "as it is" else {},
            "changed": label,
            **networks,
        }
        for label, changes in SETTINGS.items()
    ]
    return rounds + [_columns(preset, {"settings": {}, **networks}) for preset in _PRESETS]


def _columns(preset: str, more: dict[str, Any]) -> dict[str, Any]:
    run, data = "benchmarks.gpu.professions:columns", _DIRECTORIES.get(preset, preset)
    needs = [f"../shared/data/{data}"]
    return {"part": "professions", "title": f"columns of {preset}", "run": run, "preset": preset, "needs": needs} | more


def _config(case: dict[str, Any]) -> RunConfig:
    sections = {role: section(case[role]) for role in ("llm", "slm")}
    settings = {f"{role}.{key}": value for role, keys in sections.items() for key, value in keys.items()}
    if case["preset"] != "icd10":
        settings["task.path"] = str(SHARED / "data")
    if "layers" not in sections["slm"]:
        settings["slm.layers"] = None
    return load_config(case["preset"], **settings | {"federation.rounds": 1} | case["settings"])


def one_round(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield one record: every step's losses, gradient norms and columns, and how the round ended."""
    steps: list[dict[str, Any]] = []
    shapes: list[list[int]] = []
    failure = None
    with tempfile.TemporaryDirectory() as directory, _changed(case["changed"]), _watched(shapes):
        try:
            with fedcollm.listening(lambda step: steps.append(_plain(step, shapes))):
                fedcollm.run(_config(case), Path(directory) / "run")
        except fedcollm.NonFiniteError as error:
            failure = str(error)
    losses = [value for step in steps for value in step["losses"].values()]
    norms = [value for step in steps for value in step["gradient_norms"].values()]
    yield {
        "changed": case["changed"],
        "finite": failure is None and all(map(math.isfinite, losses + norms)),
        "failure": failure,
        "steps": steps,
        "longest_batch_columns": max(columns for _, columns, _ in shapes),
        "batches": len(shapes),
    }


def _plain(step: fedcollm.Step, shapes: list[list[int]]) -> dict[str, Any]:
    """Return a step as plain numbers, with rows, columns and shortest sequence of its last batch."""
    return step.to_json() | {"batch": shapes[-1]}


@contextlib.contextmanager
def _watched(shapes: list[list[int]]) -> Iterator[None]:
    """Note rows, columns and shortest sequence of every batch that is padded."""

    def noting(sequences: Any, padding: int) -> dict[str, torch.Tensor]:
        shapes.append([len(sequences), max(map(len, sequences)), min(map(len, sequences))])
        return forward.pad_left(sequences, padding)

    with mock.patch.object(task, "pad_left", noting), mock.patch.object(likelihoods, "pad_left", noting):
        yield


@contextlib.contextmanager
def _changed(label: str) -> Iterator[None]:
    """Compute as a label of `SETTINGS` says."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with contextlib.ExitStack() as stack:
        if label.endswith("unfused"):
            stack.enter_context(mock.patch.object(build_models, "fuse", return_value=None))
        if label == "mask of true and false":
            stack.enter_context(mock.patch.object(forward, "_additive_mask", lambda seen, dtype: seen[:, None]))
        if label.startswith("without cuDNN"):
            torch.backends.cuda.enable_cudnn_sdp(False)
            stack.callback(partial(torch.backends.cuda.enable_cudnn_sdp, before))
        yield


def columns(case: dict[str, Any], orders: int = 5) -> Iterator[dict[str, Any]]:
    """Yield one record: batches of a round, and those with padding and 64 modulo 128 columns; means over orders."""
    config = _config(case)
    data = split(load_pool(config.task, config.seed), config.task, config.seed)
    task = build_modality(config.task, config.slm, config.llm, False)
    parts = [(examples, config.client.batch_size) for examples in data.private.values()]
    parts.append((data.public, config.server.batch_size))
    counts = []
    for order in range(orders):
        generators = [random.Random(100 * order + k) for k in range(len(parts))]
        batches = [
            b for (part, size), g in zip(parts, generators, strict=True) for b in minibatches(task, part, size, g)
        ]
        counts.append((len(batches), sum(_fails_in_cudnn(batch.inputs["attention_mask"]) for batch in batches)))
    every, failing = (sum(values) / orders for values in zip(*counts, strict=True))
    yield {"batches": every, "failing": failing, "of_each_order": counts}


def _fails_in_cudnn(mask: torch.Tensor) -> bool:
    """Return whether a batch's mask, [B, N], has padding and 64 modulo 128 columns."""
    return mask.shape[1] % 128 == 64 and not bool(mask.all())
