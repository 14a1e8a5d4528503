"""Peers of B2: TRL's `GKDTrainer` in each direction, and two phases with stored top-k logits as FedMKT has them."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from benchmarks.speed.fine_tuning import options
from benchmarks.speed.material import configuration, drawn_for, peer_model, reset, sequences, task_of, tokens_of
from fedcollm.models.adapters import read_adapter

#: (student, teacher), in the order trained.
DIRECTIONS = (("slm", "llm"), ("llm", "slm"))

Losses = dict[str, list[float]]

#: Logits stored a position.
TOP_K = 16


def gkd(case: dict) -> Callable[[], dict]:
    """GKD off-policy (`lmbda` 0) with the forward KL (`beta` 0): teacher LLM, student SLM, then the other way.

    Its loss has no cross-entropy. It gets tokenized rows and transformers' collator, so that both sides read the same
    tokens. `bf16` (autocast) is on for a bfloat16 base, its default (else the KL is summed in bfloat16), and
    off for a float32 one.
    """
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    def trainer(student: Any, teacher: Any, tokenizer: Any, rows: list[dict], one_step: bool) -> Any:
        arguments = GKDConfig(
            **_options(one_step),
            per_device_train_batch_size=case["batch_size"],
            bf16=case["dtype"] == "bfloat16",
            gradient_checkpointing=False,
            lmbda=0.0,
            beta=0.0,
        )
        return GKDTrainer(
            student,
            teacher,
            arguments,
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )

    def prepare(models: dict[str, Any], tokenizer: Any, rows: list[dict], one_step: bool) -> Callable[[], Losses]:
        trainers = {s: trainer(models[s], models[t], tokenizer, rows, one_step) for s, t in DIRECTIONS}

        def distil() -> Losses:
            for made in trainers.values():
                made.train()
            logs = {f"{student}_kl": made.state.log_history for student, made in trainers.items()}
            return {name: [entry["loss"] for entry in log if "loss" in entry] for name, log in logs.items()}

        return distil

    return _peer(case, prepare)


def two_phase(case: dict) -> Callable[[], dict]:
    """Each model's top-k logits on the public set are stored; then each trains on cross-entropy and KL to the other's.

    `bf16` (autocast) is on for a bfloat16 base, as in B1.
    """

    def distil(models: dict[str, Any], tokenizer: Any, rows: list[dict], one_step: bool) -> Losses:
        stored = {role: _top_logits(model, tokenizer, rows, case["batch_size"]) for role, model in models.items()}
        losses = {}
        for student, teacher in DIRECTIONS:
            taught = [row | {"teacher": top} for row, top in zip(rows, stored[teacher], strict=True)]
            arguments = TrainingArguments(
                **_options(one_step),
                per_device_train_batch_size=case["batch_size"],
                bf16=case["dtype"] == "bfloat16",
                remove_unused_columns=False,
            )
            collator = functools.partial(_with_teacher, DataCollatorForSeq2Seq(tokenizer))
            trainer = _TopLogitsTrainer(models[student], arguments, collator, train_dataset=taught)  # pyright: ignore
            trainer.train()
            losses[f"{student}_ce"] = [float(loss) for loss in trainer.cross_entropies]
        return losses

    return _peer(case, lambda *arguments: functools.partial(distil, *arguments))


def _top_logits(model: Any, tokenizer: Any, rows: list[dict], batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Values and indices [N, k] of the largest logits at each of the N positions of every row."""
    collate, stored = DataCollatorForSeq2Seq(tokenizer), []
    model.eval()
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        inputs = collate([{name: row[name] for name in ("input_ids", "attention_mask")} for row in part])
        with torch.no_grad():
            largest = model(**inputs.to(model.device)).logits.topk(TOP_K, dim=-1)
        values, indices = largest.values.cpu(), largest.indices.cpu()
        lengths = [len(row["input_ids"]) for row in part]
        # copies: a view would keep the whole batch
        stored += [(values[i, :n].clone(), indices[i, :n].clone()) for i, n in enumerate(lengths)]
    return stored


def _with_teacher(collate: Any, rows: Sequence[dict]) -> dict[str, Tensor]:
    """A batch of transformers' collator, and the teacher's stored logits padded to it."""
    pairs = [row["teacher"] for row in rows]
    batch = collate([{name: value for name, value in row.items() if name != "teacher"} for row in rows])
    values, indices = (torch.nn.utils.rnn.pad_sequence(list(part), True) for part in zip(*pairs, strict=True))
    return {**batch, "teacher_values": values, "teacher_indices": indices}


class _TopLogitsTrainer(Trainer):
    """Cross-entropy, and KL to a teacher's stored top-k logits, which are renormalized over these k."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.cross_entropies: list[Tensor] = []

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Means over supervised positions."""
        values, indices = inputs.pop("teacher_values"), inputs.pop("teacher_indices")
        output = model(**inputs)
        mask = inputs["labels"][:, 1:] != -100
        student = output.logits[:, :-1].float().log_softmax(-1)[mask].gather(-1, indices[:, :-1][mask])
        teacher = values[:, :-1][mask].float().log_softmax(-1)
        kl = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
        self.cross_entropies.append(output.loss.detach())
        loss = output.loss + kl
        return (loss, output) if return_outputs else loss


def _options(one_step: bool) -> dict[str, Any]:
    """For one step the rate is 0, so that the second direction starts from the initial adapters too, as ours does."""
    return options(1) | {"learning_rate": 0.0} if one_step else options()


def _peer(case: dict, prepare: Callable[..., Callable[[], Losses]]) -> Callable[[], dict]:
    """Times both directions from the initial adapters; what `prepare` does is not timed."""
    config = configuration(case)
    task = task_of(config)
    rows = sequences(task, drawn_for(case).public[: case["examples"]])
    models = {role: peer_model(config, role) for role in ("slm", "llm")}
    initial = {role: read_adapter(model) for role, model in models.items()}

    def fresh(part: list[dict], one_step: bool = False) -> Callable[[], Losses]:
        for role, model in models.items():
            reset(model, initial[role])
        return prepare(models, task.tokenizer, part, one_step)

    @functools.cache
    def first() -> dict[str, float]:
        return {name: steps[0] for name, steps in fresh(rows[: case["batch_size"]], one_step=True)().items()}

    def repeat() -> dict:
        figures = {"first": first(), "tokens": tokens_of(rows)}
        distil = fresh(rows)
        start = time.perf_counter()
        distil()
        return {"seconds": time.perf_counter() - start, **figures}

    return repeat
