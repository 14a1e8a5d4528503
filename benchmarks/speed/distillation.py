"""B2: the server's mutual distillation beside two ways to do it with peers.

Both sides: the same two bases in the same dtype, LoRA rank 8, alpha 16 on every linear layer but the head, the same
initial adapters, one epoch over the same public examples at the same batch size, the optimizer of B1. Both models are
trained: ours from one pair of forward passes a batch, the peers one model after the other.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.speed.fine_tuning import TOLERANCE
from benchmarks.speed.material import (
    LEARNING_RATE,
    QWEN,
    SMOLLM2,
    compare,
    configuration,
    drawn_for,
    needs,
    our_model,
    sequences,
    task_of,
    tokens_of,
    useful_operations,
)

PEERS = {"gkd": "TRL GKDTrainer, both ways", "two_phase": "stored top-16 logits, two Trainers"}


def _cases(
    data: str,
    examples: int,
    batch_size: int,
    form: str,
    models: dict = SMOLLM2,
    dtypes: Sequence[str] = ("bfloat16", "float32"),
) -> list[dict]:
    name = "SmolLM2-135M, 30 and 10 layers" if models is SMOLLM2 else "Qwen2.5-Coder 1.5B and 0.5B"
    return [
        {
            "row": "B2",
            "title": f"{name}, {data}, {examples} examples, batch {batch_size}, {dtype}: {PEERS[peer]}",
            "peer_name": PEERS[peer],
            "ours": "benchmarks.speed.distillation:ours",
            "peer": f"benchmarks.speed.distillation_peers:{peer}",
            "same": "benchmarks.speed.distillation:same",
            "target": "≥ 3 ×",
            "memory_target": "≤ 0.5 ×",
            "form": form,
            "needs": needs(data, models),
            "separate": models is QWEN,
            "data": data,
            "examples": examples,
            "batch_size": batch_size,
            "models": models,
            "dtype": dtype,
        }
        for dtype in dtypes
        for peer in PEERS
    ]


CASES = (
    *_cases("icd10", 160, 16, "short", dtypes=["bfloat16"]),
    *_cases("icd10", 160, 16, "long", dtypes=["float32"]),
    *_cases("arc_challenge", 64, 16, "long"),
    *_cases("pubmedqa", 16, 4, "long"),
    *_cases("arc_challenge", 8, 4, "long", QWEN, dtypes=["bfloat16"]),
)


def ours(case: dict) -> Callable[[], dict]:
    """`distil` on the pair that `fedcollm run` builds, from the same adapters in every repetition."""
    from fedcollm.config import ServerConfig
    from fedcollm.models.adapters import read_adapter, write_adapter
    from fedcollm.training.distillation import ModelPair, distil

    config = configuration(case)
    task, public = task_of(config), drawn_for(case).public[: case["examples"]]
    models = {role: our_model(config, role, task) for role in ("slm", "llm")}
    initial = {role: read_adapter(model) for role, model in models.items()}
    rows = sequences(task, public)
    work = {
        "tokens": tokens_of(rows),
        "operations": sum(useful_operations(model, rows) for model in models.values()),
    }

    settings = ServerConfig(epochs=1, batch_size=case["batch_size"], learning_rate=LEARNING_RATE)

    def teach(part: Sequence[Any], one: str = "slm", other: str = "llm") -> dict[str, float]:
        for role, model in models.items():
            write_adapter(model, initial[role])
        return distil(ModelPair(task, models[one], models[other]), part, settings, seed=0)

    @functools.cache
    def first() -> dict[str, float]:  # one batch is one step; with the roles exchanged, its KL is the LLM's
        batch = public[: case["batch_size"]]
        step, exchanged = teach(batch), teach(batch, "llm", "slm")
        return {"slm_ce": step["slm"], "llm_ce": step["llm"], "slm_kl": step["kl"], "llm_kl": exchanged["kl"]}

    def repeat() -> dict:
        figures = {"first": first(), "dtype": case["dtype"], **work}
        start = time.perf_counter()
        teach(public)
        return {"seconds": time.perf_counter() - start, **figures}

    return repeat


def same(ours: dict, peer: dict) -> str:
    """The losses of the first step on one batch, from the same adapters, agree, for each that the peer has.

    GKD's loss is the KL itself, each way; the two-phase order has the same cross-entropies, but a KL to 16 logits.
    """
    if ours["tokens"] != peer["tokens"]:
        raise ValueError(f"{ours['tokens']} and {peer['tokens']} tokens")
    tolerance, names = TOLERANCE[ours["dtype"]], sorted(peer["first"])
    one, other = ([side["first"][name] for name in names] for side in (ours, peer))
    told = compare(" and ".join(names), one, other, tolerance)
    return f"first step's {told} (tolerance {tolerance:g})"
