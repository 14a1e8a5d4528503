"""B1: a client's fine-tuning beside `transformers.Trainer` with PEFT and TRL's `SFTTrainer`.

Both sides: the same base in the same dtype, LoRA rank 8, alpha 16 on every linear layer but the head, the same initial
adapter, one epoch over the same examples at the same batch size, fused AdamW with β = (0.9, 0.95), a constant rate, no
clipping, no weight decay, no logging, saving or evaluation, no gradient checkpointing, examples tokenized beforehand.
The rest is each side's own habit: the peers shuffle and pad each batch to its longest sequence.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.speed.material import (
    LEARNING_RATE,
    QWEN_CLIENT,
    SMOLLM2,
    compare,
    configuration,
    drawn_for,
    layers_of,
    needs,
    our_model,
    peer_model,
    reset,
    sequences,
    task_of,
    tokens_of,
    useful_operations,
)

PEERS = {"trainer": "transformers.Trainer + PEFT", "sft": "TRL SFTTrainer"}

#: Largest difference of the losses of the first steps.
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}

#: Steps whose losses are compared, on one fixed batch.
STEPS = 4


def _cases(data: str, examples: int, batch_size: int, form: str, models: dict = SMOLLM2) -> list[dict]:
    name = "SmolLM2-135M, 10 layers" if models is SMOLLM2 else "Qwen2.5-Coder-0.5B"
    return [
        {
            "row": "B1",
            "title": f"{name}, {data}, {examples} examples, batch {batch_size}, {dtype}: {PEERS[peer]}",
            "peer_name": PEERS[peer],
            "ours": "benchmarks.speed.fine_tuning:ours",
            "peer": f"benchmarks.speed.fine_tuning:{peer}",
            "same": "benchmarks.speed.fine_tuning:same",
            "target": "≥ 4 ×" if dtype == "bfloat16" else "≥ 3 ×",
            "memory_target": "≤ 0.6 ×",
            "form": form,
            "needs": needs(data, models),
            "separate": models is QWEN_CLIENT,
            "data": data,
            "examples": examples,
            "batch_size": batch_size,
            "models": models,
            "dtype": dtype,
        }
        for dtype in ("bfloat16", "float32")
        for peer in PEERS
    ]


CASES = (
    *_cases("icd10", 320, 16, "short"),
    *_cases("arc_challenge", 96, 16, "long"),
    *_cases("pubmedqa", 32, 4, "long"),
    *_cases("arc_challenge", 16, 4, "long", QWEN_CLIENT),
)


def ours(case: dict) -> Callable[[], dict]:
    """`fit` on the model that `fedcollm run` builds, from the same adapter in every repetition."""
    from fedcollm.config import ClientConfig
    from fedcollm.models.adapters import read_adapter, write_adapter
    from fedcollm.training.fine_tuning import fit

    config = configuration(case)
    task, examples = task_of(config), drawn_for(case).private["0"][: case["examples"]]
    model = our_model(config, "slm", task)
    initial, rows = read_adapter(model), sequences(task, examples)
    work = {"tokens": tokens_of(rows), "operations": useful_operations(model, rows)}

    def tune(part: Sequence[Any], epochs: int) -> float:
        write_adapter(model, initial)
        settings = ClientConfig(epochs=epochs, batch_size=case["batch_size"], learning_rate=LEARNING_RATE)
        with layers_of(model, case):
            return fit(task, model, part, settings, seed=0)

    @functools.cache
    def losses() -> list[float]:  # with one batch, the loss of the last epoch is that of the last step
        return [tune(examples[: case["batch_size"]], steps) for steps in range(1, STEPS + 1)]

    def repeat() -> dict:
        figures = {"losses": losses(), "dtype": case["dtype"], **work}
        start = time.perf_counter()
        tune(examples, 1)
        return {"seconds": time.perf_counter() - start, **figures}

    return repeat


def trainer(case: dict) -> Callable[[], dict]:
    """`transformers.Trainer` and its collator that pads to the longest sequence of a batch.

    As FATE-LLM, OpenFedLLM and FlowerTune train; `bf16` (autocast) is on for a bfloat16 base, as it is a tenth
    faster than without on a CPU, and off for a float32 one; `autocast` in the case decides otherwise.
    """
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    def build(model: Any, tokenizer: Any, rows: list[dict], options: dict) -> Any:
        arguments = TrainingArguments(
            **options,
            per_device_train_batch_size=case["batch_size"],
            bf16=case.get("autocast", case["dtype"] == "bfloat16"),
        )
        return Trainer(model, arguments, DataCollatorForSeq2Seq(tokenizer), train_dataset=rows)  # pyright: ignore

    return _peer(case, build)


def sft(case: dict) -> Callable[[], dict]:
    """TRL's `SFTTrainer` on tokenized prompts and completions with labels on the completion; packing is off.

    `bf16` (autocast), which TRL turns on by default, is off: on a bfloat16 base that is a tenth faster here.
    """
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    def build(model: Any, tokenizer: Any, rows: list[dict], options: dict) -> Any:
        arguments = SFTConfig(
            **options,
            per_device_train_batch_size=case["batch_size"],
            bf16=False,
            gradient_checkpointing=False,
        )
        plain = [{name: row[name] for name in ("input_ids", "labels")} for row in rows]
        return SFTTrainer(model, arguments, train_dataset=Dataset.from_list(plain), processing_class=tokenizer)

    return _peer(case, build)


def options(steps: int | None = None) -> dict[str, Any]:
    """`TrainingArguments` of every peer; with `steps`, so many epochs with a loss logged each step."""
    return {
        "output_dir": "runs/benchmark-peer",
        "use_cpu": not torch.cuda.is_available(),
        "num_train_epochs": steps or 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.95,
        "max_grad_norm": 0.0,
        "logging_strategy": "steps" if steps else "no",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _peer(case: dict, build: Callable[..., Any]) -> Callable[[], dict]:
    """Times `train()` of a fresh trainer from the initial adapter; making the trainer is not timed."""
    from fedcollm.models.adapters import read_adapter

    config = configuration(case)
    task = task_of(config)
    rows = sequences(task, drawn_for(case).private["0"][: case["examples"]])
    model = peer_model(config, "slm")
    initial = read_adapter(model)

    def fresh(part: list[dict], steps: int | None = None) -> Any:
        reset(model, initial)
        return build(model, task.tokenizer, part, options(steps))

    @functools.cache
    def losses() -> list[float]:
        made = fresh(rows[: case["batch_size"]], STEPS)
        made.train()
        return [entry["loss"] for entry in made.state.log_history if "loss" in entry]

    def repeat() -> dict:
        figures = {"losses": losses(), "tokens": tokens_of(rows)}
        made = fresh(rows)
        start = time.perf_counter()
        made.train()
        return {"seconds": time.perf_counter() - start, **figures}

    return repeat


def same(ours: dict, peer: dict) -> str:
    """Both losses of the first steps on one batch, from the same adapter, agree."""
    if ours["tokens"] != peer["tokens"]:
        raise ValueError(f"{ours['tokens']} and {peer['tokens']} tokens")
    tolerance = TOLERANCE[ours["dtype"]]
    return f"{compare(f'losses of {STEPS} steps', ours['losses'], peer['losses'], tolerance)} (tolerance {tolerance:g})"
