"""The work of B1 and B2: real data, the models, and the settings that both sides share."""

import contextlib
import functools
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from fedcollm.config import RunConfig
from fedcollm.data.catalogue import build_modality, load_pool
from fedcollm.data.partition import split
from fedcollm.data.pool import Split
from fedcollm.messages import Adapter
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.text.task import TextTask
from fedcollm.models.adapters import resolve_device, write_adapter
from fedcollm.models.fused.patch import unfused
from fedcollm.models.pretrained import SHIPPED, base_directory
from fedcollm.runs.build_models import build_model, set_backends
from fedcollm.seeding import derive_seed

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"

#: Of every optimizer here; fedcollm's own is constant, without clipping, and so are the peers' made to be.
LEARNING_RATE = 1e-3

SMOLLM2 = {"llm": {"source": "smollm2-135m"}, "slm": {"source": "smollm2-135m", "layers": 10}}
QWEN = {"llm": {"source": "qwen2.5-coder-1.5b"}, "slm": {"source": "qwen2.5-coder-0.5b"}}
QWEN_CLIENT = {"llm": QWEN["slm"], "slm": QWEN["slm"]}  # a client needs no LLM

_FORMAT = {"prompt": "{question}\nAnswer:", "answer": "answer", "choices": "choices"}
_TASKS: dict[str, dict[str, Any]] = {
    "icd10": {"name": "icd10"},
    "arc_challenge": {"name": "arc_challenge", "path": str(SHARED / "data")},
    "pubmedqa": {"name": "custom", "path": str(SHARED / "data" / "pubmedqa"), "format": _FORMAT},
}


def needs(data: str, models: dict) -> list[str]:
    """Paths relative to the repository that a case reads."""
    paths = [] if data == "icd10" else [f"../shared/data/{data}"]
    return paths + ([] if models["slm"]["source"] in SHIPPED else ["../shared/models/get.py"])


def configuration(case: dict) -> RunConfig:
    """What `fedcollm run` would be given: rank 8, alpha 16, every linear layer but the head, no dropout.

    Args:
        case: with `data`, `models`, `dtype`, and `examples` a client; or `pool`, the sizes from which they are cut.
    """
    size = {"clients": 4, "private_size": case.get("examples"), "public_size": case.get("examples"), "test_size": 21}
    task = _TASKS[case["data"]] | case.get("pool", size) | {"partition": {"kind": "iid"}}
    roles = {
        role: {**model, "source": _source(model["source"]), "dtype": case["dtype"]}
        for role, model in case["models"].items()
    }
    return RunConfig.model_validate({"name": "bench", "task": task, **roles})


def _source(name: str) -> str:
    """A shipped name or directory, or the GGUF file that `../shared/models/get.py` makes once, outside this one."""
    if name in SHIPPED or Path(name).is_dir():
        return name
    directory = Path(os.environ.get("FEDCOLLM_BENCH_CACHE") or Path.home() / ".cache" / "fedcollm-bench")
    file = directory / f"{name}.gguf"
    if not file.is_file():
        subprocess.run([sys.executable, SHARED / "models" / "get.py", name, directory], check=True)
    return str(file)


def data_of(config: RunConfig) -> Split:
    """Client "0"'s examples and the public ones, as many as the case has.

    They are drawn in a process of its own, so that the memory that their source keeps counts on neither side.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_drawn, config).result()


def _drawn(config: RunConfig) -> Split:
    return split(load_pool(config.task, config.seed), config.task, config.seed)


@functools.cache
def _drawn_here(config: str) -> Split:
    return _drawn(RunConfig.model_validate_json(config))


def drawn_for(case: dict) -> Split:
    """The data of a case; with `one_process` drawn here, once, for all sides that share this process."""
    config = configuration(case)
    return _drawn_here(config.model_dump_json()) if case.get("one_process") else data_of(config)


def task_of(config: RunConfig) -> TextTask:
    """The text task on the tokenizer that both models share."""
    task = build_modality(config.task, config.slm, config.llm, False)
    assert isinstance(task, TextTask)
    return task


def our_model(config: RunConfig, role: str, task: TextTask) -> Any:
    """A role's model exactly as `fedcollm run` builds it."""
    set_backends(config)
    return build_model(config, role, task, [], Path(tempfile.gettempdir()) / "no-base-of-the-benchmark")


def peer_model(config: RunConfig, role: str) -> Any:
    """The same weights and the same initial adapter, loaded as a user of PEFT does: base in the case's dtype."""
    import peft
    from transformers import AutoModelForCausalLM

    model = config.slm if role == "slm" else config.llm
    place = base_directory(model.source, model.layers)
    base = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, model.dtype))
    lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type=peft.TaskType.CAUSAL_LM)
    torch.manual_seed(derive_seed(config.seed, "adapter", role))
    return peft.get_peft_model(base, lora).to(resolve_device(config.device))


def layers_of(model: Any, case: dict) -> AbstractContextManager[None]:
    """Our layers; or with `fused: False` in the case PEFT's and transformers' own on the same weights."""
    return contextlib.nullcontext() if case.get("fused", True) else unfused(model)


def reset(model: Any, adapter: Adapter) -> None:
    """The model as loaded: its initial adapter, and `forward` without what an earlier trainer wrapped around it."""
    write_adapter(model, adapter)
    for module in model.modules():
        module.__dict__.pop("forward", None)


def sequences(task: TextTask, examples: Sequence[TextExample]) -> list[dict[str, list[int]]]:
    """Examples as the peers take them: prompt and answer tokens, labels only on the answer."""
    rows = []
    for example in examples:
        prompt, answer = task.encode(example.prompt, example.choices[example.answer or 0])
        labels = [-100] * len(prompt) + list(answer)
        rows.append({"input_ids": list(prompt + answer), "attention_mask": [1] * len(labels), "labels": labels})
    return rows


def tokens_of(rows: Sequence[dict[str, list[int]]]) -> int:
    """Tokens of prompts and answers, without padding."""
    return sum(len(row["input_ids"]) for row in rows)


def useful_operations(model: Any, rows: Sequence[dict[str, list[int]]]) -> int:
    """Floating-point operations that training one epoch needs at least: 4 (L T + H S).

    L: parameters of the frozen linear layers but the head; T: tokens that must be read (all but each last one);
    H: parameters of the head; S: supervised positions. A product counts two operations a parameter and token, once
    forward and once for the gradient of its input; adapters, attention and everything pointwise are left out.
    """
    head = model.get_output_embeddings().weight.numel()
    layers = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and not parameter.requires_grad and ".layers." in name
    )
    supervised = sum(label != -100 for row in rows for label in row["labels"])
    return 4 * (layers * (tokens_of(rows) - len(rows)) + head * supervised)


def compare(name: str, ours: Sequence[float], peer: Sequence[float], tolerance: float) -> str:
    """How far two lists of losses are apart.

    Raises:
        ValueError: further than the tolerance, absolute for losses below 1 and relative above.
    """
    apart = [abs(a - b) / max(1.0, abs(a)) for a, b in zip(ours, peer, strict=True)]
    if not max(apart) <= tolerance:
        raise ValueError(f"{name}: {list(ours)} and {list(peer)} differ by {max(apart):.2g}, more than {tolerance:g}")
    return f"{name} within {max(apart):.1g}"
