"""B6: fine-tuning on images, boxes and audio beside `transformers.Trainer` with PEFT: `--rows B6`.

Both sides: one network with random weights, LoRA rank 8, alpha 16 on the same layers, the same initial adapter, one
epoch over the same examples **in the same batches and the same order**, fused AdamW with β = (0.9, 0.95), a constant
rate of 1e-3, no clipping, no weight decay, no logging, saving or evaluation, float32, one thread. The losses of all
steps of the epoch must agree, otherwise there is no result.

The peer gets what a careful user of Trainer would write: images, boxes and clips are decoded before (on both sides),
and a collator that stacks them; clips go through the feature extractor in the collator, on both sides. With "features
before" in a title only the peer's clips have been through it beforehand, as in the examples of transformers that call
`dataset.map`; ours has to make them in the epoch.

Trainer needs accelerate, which fedcollm does not: `pip install -c constraints.txt accelerate`, and `fedcollm[audio]`.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.speed.fine_tuning import options
from benchmarks.speed.material import LEARNING_RATE, compare
from benchmarks.speed.modality_work import Work, made

#: Largest difference of the losses of a step.
TOLERANCE = 1e-4

#: Seed of the order of the examples, and of the adapter.
SEED = 0

_VIT_S = {
    "image_size": 224, "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536,
}  # fmt: skip
_YOLOS = {
    "image_size": [224, 224], "patch_size": 16, "num_detection_tokens": 100, "hidden_size": 192,
    "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768, "use_mid_position_embeddings": False,
}  # fmt: skip
_AST = {
    "num_mel_bins": 128, "max_length": 256, "hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3,
    "intermediate_size": 768,
}  # fmt: skip
_WHISPER_TINY = {
    "vocab_size": 51_865, "d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 6,
    "decoder_attention_heads": 6, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536, "num_mel_bins": 80,
}  # fmt: skip
_WAV2VEC2 = {
    "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024,
    "feat_extract_norm": "layer", "conv_dim": [128] * 7, "do_stable_layer_norm": True,
}  # fmt: skip

#: Title of a case to what makes its work, see `modality_work`.
_WORK: dict[str, dict[str, Any]] = {
    "image classification, ViT-S/16": {"kind": "images", "shape": _VIT_S, "examples": 16, "batch_size": 8},
    "detection, YOLOS of 6 M": {"kind": "detection", "shape": _YOLOS, "examples": 16, "batch_size": 8},
    "audio classification, AST of 5 M": {"kind": "audio", "shape": _AST, "examples": 16, "batch_size": 8, "seconds": 3},
    "Whisper tiny, 10 s": {"kind": "whisper", "shape": _WHISPER_TINY, "examples": 16, "batch_size": 8, "seconds": 10},
    "CTC, wav2vec2 of 6 M": {"kind": "ctc", "shape": _WAV2VEC2, "examples": 16, "batch_size": 8, "seconds": 4},
}
_WORK |= {
    f"{title}, features before": work | {"features": "before"}
    for title, work in _WORK.items()
    if work["kind"] in ("audio", "whisper")
}

CASES = [
    {
        "row": "B6",
        "title": title,
        "peer_name": "transformers.Trainer + PEFT",
        "ours": "benchmarks.speed.modalities:ours",
        "peer": "benchmarks.speed.modalities:trainer",
        "same": "benchmarks.speed.modalities:same",
        "target": "≥ 1 ×",
        "memory_target": "≤ 1 ×",
        "form": "short",
        "cold": True,  # the pass that compares the losses warms up
        "threads": "1",
        **work,
    }
    for title, work in _WORK.items()
]


def ours(case: dict) -> Callable[[], dict]:
    """`fit` on the network with its adapter as `fedcollm run` builds them."""
    from fedcollm.config import ClientConfig
    from fedcollm.metrics import Step, listening
    from fedcollm.models.adapters import read_adapter, write_adapter
    from fedcollm.models.fused.patch import fuse
    from fedcollm.training.fine_tuning import fit

    with made(case) as work:
        model = _network(work)
        fuse(model)
    initial = read_adapter(model)
    settings = ClientConfig(batch_size=case["batch_size"], learning_rate=LEARNING_RATE)

    def tune() -> None:
        write_adapter(model, initial)
        fit(work.task, model, work.examples, settings, SEED)

    @functools.cache
    def losses() -> list[float]:
        steps: list[Step] = []
        with listening(steps.append):
            tune()
        return [float(step.losses["training"]) for step in steps]

    return functools.partial(_timed, losses, lambda: tune)


def trainer(case: dict) -> Callable[[], dict]:
    """`transformers.Trainer` over the batches of `fit`, in its order; making the trainer is not timed."""
    from transformers import Trainer, TrainingArguments

    from benchmarks.speed.material import reset
    from fedcollm.models.adapters import read_adapter

    with made(case) as work:
        model = _unmapped(_network(work))
        rows = work.rows([example for batch in batches(work, case["batch_size"]) for example in batch])
    initial = read_adapter(model)

    def fresh(logged: bool) -> Any:
        reset(model, initial)
        model.train()
        arguments = TrainingArguments(
            **options(1) | {"logging_strategy": "steps" if logged else "no"},
            per_device_train_batch_size=case["batch_size"],
            train_sampling_strategy="sequential",
            remove_unused_columns=False,  # PEFT's forward does not name its arguments
        )
        return Trainer(model, arguments, work.collate, train_dataset=rows)  # pyright: ignore

    @functools.cache
    def losses() -> list[float]:
        one = fresh(True)
        one.train()
        return [entry["loss"] for entry in one.state.log_history if "loss" in entry]

    return functools.partial(_timed, losses, lambda: fresh(False).train)


def batches(work: Work, batch_size: int) -> list[list[Any]]:
    """The examples of each batch of `fit`, in its order."""
    import random

    from fedcollm.training.batches import minibatches

    class Kept:
        size = staticmethod(work.task.size)
        collate = staticmethod(list)

    return list(minibatches(Kept(), work.examples, batch_size, random.Random(SEED)))


def same(ours: dict, peer: dict) -> str:
    """The losses of all steps agree, and the adapter learns something: they are not all equal."""
    said = compare(f"losses of {len(ours['losses'])} steps", ours["losses"], peer["losses"], TOLERANCE)
    if len(set(ours["losses"])) == 1:
        raise ValueError(f"all losses are {ours['losses'][0]}")
    return f"{said} (tolerance {TOLERANCE:g})"


def _network(work: Work) -> nn.Module:
    """The network in float32, with PEFT's adapter."""
    from fedcollm.runs.build_models import adapted

    network = work.task.load_model(work.section, "slm", torch.device("cpu"), SEED)
    return adapted(network, work.section.adapter, work.task, SEED, "bench")


def _unmapped(model: nn.Module) -> nn.Module:
    """The network with its weights copied out of the mapped file, as ours are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def _timed(losses: Callable[[], Sequence[float]], prepare: Callable[[], Callable[[], object]]) -> dict:
    """The figures of one repetition: seconds on the clock, and of the processor (user and system)."""
    figures = {"losses": losses(), "dtype": "float32"}
    work = prepare()
    start, processor = time.perf_counter(), time.process_time()
    work()
    seconds, used = time.perf_counter() - start, time.process_time() - processor
    return {"seconds": seconds, "processor_seconds": used, **figures}
