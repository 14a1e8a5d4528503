"""The peer of B5: FedCoLLM as a user would assemble it from libraries, `python -m benchmarks.speed.assembly --out DIR`.

Clients are fine-tuned by `transformers.Trainer` with PEFT, one after the other on one base model; their adapters are
averaged; the server distils in the two-phase order of FedMKT, which is quicker than TRL's `GKDTrainer` run once in each
direction (the same number of passes, without a divergence over the whole vocabulary at every position): both models'
largest logits at the answers are stored, and then each model is fine-tuned by a Trainer on cross-entropy plus KL. Both
models are scored by lm-evaluation-harness. Data, rates, batch sizes and epochs are those of the preset `icd10`.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import peft
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from benchmarks.speed.lm_harness import harness_evaluate, harness_model, harness_task
from benchmarks.speed.material import sequences, task_of
from fedcollm.config import RunConfig
from fedcollm.config.loading import load_config, parse_settings
from fedcollm.data.catalogue import load_pool
from fedcollm.data.partition import split
from fedcollm.models.pretrained import base_directory
from fedcollm.seeding import derive_seed

#: Logits stored at a position.
TOP = 64

Adapter = dict[str, Tensor]


def main() -> None:
    """Rounds until the program is stopped or done, one JSON line each in `rounds.jsonl`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    config = load_config("icd10", **parse_settings(arguments.settings))
    torch.set_float32_matmul_precision("medium")  # as fedcollm does on a bfloat16 base
    data = split(load_pool(config.task, config.seed), config.task, config.seed)
    task = task_of(config)
    slm, llm = load(config, "slm"), load(config, "llm")
    rows = {name: sequences(task, examples) for name, examples in data.private.items()}
    public = sequences(task, data.public)
    scored = harness_task(data.test)
    adapter = peft.get_peft_model_state_dict(slm, save_embedding_layers=False)
    for index in range(1, config.federation.rounds + 1):
        start = time.perf_counter()
        peft.set_peft_model_state_dict(slm, train_clients(config, slm, adapter, rows, task.tokenizer, index))
        tuned = time.perf_counter()
        distil(config, slm, llm, public, task.tokenizer, index)
        adapter = copied(slm)
        distilled = time.perf_counter()
        scores = {role: score(model, task.tokenizer, scored, config) for role, model in (("slm", slm), ("llm", llm))}
        seconds = {
            "clients": tuned - start,
            "distillation": distilled - tuned,
            "evaluation": time.perf_counter() - distilled,
        }
        with (arguments.out / "rounds.jsonl").open("a") as file:
            file.write(json.dumps({"round": index, "scores": scores, "seconds": seconds}) + "\n")


def load(config: RunConfig, role: str) -> Any:
    """A role's base in bfloat16 with a fresh LoRA adapter."""
    model = config.slm if role == "slm" else config.llm
    place = base_directory(model.source, model.layers)
    base = AutoModelForCausalLM.from_pretrained(place, dtype=torch.bfloat16, attn_implementation="eager")
    lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type=peft.TaskType.CAUSAL_LM)
    torch.manual_seed(derive_seed(config.seed, "adapter", role))
    return peft.get_peft_model(base, lora)


def copied(model: Any) -> Adapter:
    """The adapter's values, which later training does not change."""
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def arguments_of(batch_size: int, learning_rate: float, epochs: int, seed: int) -> TrainingArguments:
    """Constant rate, fused AdamW as in FedMKT, batches of like length, and nothing that is written."""
    return TrainingArguments(
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        num_train_epochs=epochs,
        seed=seed,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta2=0.95,
        max_grad_norm=0.0,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def train_clients(
    config: RunConfig, slm: Any, adapter: Adapter, rows: dict[str, list[dict]], tokenizer: Any, index: int
) -> Adapter:
    """FedAvg: every client's Trainer from the global adapter; the mean weighted by numbers of examples."""
    client = config.client
    total = sum(map(len, rows.values()))
    mean = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in adapter.items()}
    for name, examples in rows.items():
        peft.set_peft_model_state_dict(slm, adapter)
        seed = derive_seed(config.seed, "client", name, index)
        settings = arguments_of(client.batch_size, client.learning_rate, client.epochs, seed)
        collator = DataCollatorForSeq2Seq(tokenizer)
        Trainer(slm, settings, train_dataset=Dataset.from_list(examples), data_collator=collator).train()
        for key, tensor in copied(slm).items():
            mean[key] += tensor.double() * (len(examples) / total)
    return {key: tensor.to(adapter[key].dtype) for key, tensor in mean.items()}


def distil(config: RunConfig, slm: Any, llm: Any, public: list[dict], tokenizer: Any, index: int) -> None:
    """Store both models' logits, then fine-tune each on the labels and on the other's."""
    collator = DataCollatorForSeq2Seq(tokenizer)
    stored = {role: stored_logits(model, public, collator) for role, model in (("slm", slm), ("llm", llm))}
    for role, other, model in (("slm", "llm", slm), ("llm", "slm", llm)):
        server = config.server
        seed = derive_seed(config.seed, "server", role, index)
        examples = Dataset.from_list([{**row, "index": i} for i, row in enumerate(public)])
        settings = arguments_of(server.batch_size, server.learning_rate, server.epochs, seed)
        trainer = DistillingTrainer(model, settings, train_dataset=examples, data_collator=collator)
        trainer.teacher = stored[other]
        trainer.train()


def answer_rows(logits: Tensor, labels: Tensor) -> Tensor:
    """[P, V] of [B, T, V]: the logits that predict labelled tokens."""
    return logits[:, :-1][labels[:, 1:] != -100].float()


def stored_logits(model: Any, rows: list[dict], collator: Any) -> list[tuple[Tensor, Tensor]]:
    """Of each example, the `TOP` largest logits at its answer tokens and their places, each [tokens, TOP]."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    found: dict[int, tuple[Tensor, Tensor]] = {}
    model.eval()
    for start in range(0, len(order), 32):
        part = order[start : start + 32]
        batch = collator([dict(rows[i]) for i in part])
        labels = batch.pop("labels")
        with torch.inference_mode():
            values, places = answer_rows(model(**batch).logits, labels).topk(TOP)
        counts = (labels != -100).sum(-1).tolist()
        found.update(zip(part, zip(values.split(counts), places.split(counts), strict=True), strict=True))
    return [tuple(tensor.clone() for tensor in found[i]) for i in range(len(rows))]  # pyright: ignore


class DistillingTrainer(Trainer):
    """Cross-entropy plus KL to the stored logits of another model, both as means over answer tokens."""

    teacher: list[tuple[Tensor, Tensor]]

    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, **_: Any) -> Any:
        """Loss of one batch."""
        labels, indices = inputs.pop("labels"), inputs.pop("index").tolist()
        output = model(**inputs)
        logs = answer_rows(output.logits, labels).log_softmax(-1)
        values, places = (torch.cat([self.teacher[i][part] for i in indices]) for part in (0, 1))
        teacher = values.log_softmax(-1)
        divergence = (teacher.exp() * (teacher - logs.gather(-1, places))).sum(-1).mean()
        loss = functional.nll_loss(logs, labels[:, 1:][labels[:, 1:] != -100]) + divergence
        return (loss, output) if return_outputs else loss


def score(model: Any, tokenizer: Any, task: Any, config: RunConfig) -> float:
    """Accuracy on the test items."""
    model.eval()
    harness = harness_model(model, tokenizer, config.evaluation.batch_size, softmax_dtype=None)
    return harness_evaluate(harness, task)["acc"]


if __name__ == "__main__":
    main()
