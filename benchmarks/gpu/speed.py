"""Part `speed`: rows B1, B2 and B3 of benchmarks.speed on a GPU, in bfloat16, by the same functions.

A repetition ends when its last loss or score has been read, so that nothing is left running on the GPU. Beside the
peers stand our own other ways: PEFT's layers instead of ours, and grouped attention instead of torch's.
"""

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.networks import TITLES, with_models
from benchmarks.gpu.sides import OURS, Sides
from benchmarks.speed import distillation, fine_tuning, scoring
from benchmarks.speed.material import SMOLLM2, needs

#: Data -> the sizes of the split whose first examples are taken.
POOLS = {
    "icd10": {"clients": 1, "private_size": 640, "public_size": 640, "test_size": 600},
    "arc_challenge": {"clients": 1, "private_size": 520, "public_size": 520, "test_size": 21},
    "pubmedqa": {"clients": 1, "private_size": 96, "public_size": 64, "test_size": 21},
}
TINY_POOL = {"clients": 1, "private_size": 16, "public_size": 16, "test_size": 12}

#: Side of B1 -> function, and what it changes in the case.
_TUNING = {
    OURS: ("benchmarks.speed.fine_tuning:ours", {}),
    "unfused": ("benchmarks.speed.fine_tuning:ours", {"fused": False}),
    "grouped": ("benchmarks.speed.fine_tuning:ours", {"attention": "grouped"}),
    "Trainer, autocast": ("benchmarks.speed.fine_tuning:trainer", {"autocast": True}),
    "Trainer": ("benchmarks.speed.fine_tuning:trainer", {"autocast": False}),
    "TRL SFTTrainer": ("benchmarks.speed.fine_tuning:sft", {}),
}
_DISTILLING = {
    OURS: ("benchmarks.speed.distillation:ours", {}),
    "TRL GKD, both ways": ("benchmarks.speed.distillation_peers:gkd", {}),
    "stored top-16 logits": ("benchmarks.speed.distillation_peers:two_phase", {}),
}
_SCORING = {
    OURS: ("benchmarks.speed.scoring:ours", {}),
    "unfused": ("benchmarks.speed.scoring:ours", {"fused": False}),
    "lm-evaluation-harness": ("benchmarks.speed.scoring:lm_eval", {}),
}
_TRAINERS = ("Trainer, autocast", "Trainer")
_GKD, _STORED = ("TRL GKD, both ways",), ("stored top-16 logits",)


def cases(tiny: bool) -> list[dict[str, Any]]:
    """Return the rows that were measured; GKD and stored logits apart, since GKD leaves models without logits."""
    if tiny:
        small = {"repetitions": 1, "pool": TINY_POOL}
        return [
            _tuning("icd10", 12, 4, ("unfused", *_TRAINERS, "TRL SFTTrainer"), network="tiny-2", **small),
            _distilling("icd10", 12, 4, _STORED, networks=("tiny-3", "tiny-2"), **small),
            _distilling("icd10", 12, 4, _GKD, networks=("tiny-3", "tiny-2"), **small),
            _scoring("icd10", 6, 4, network="tiny-3", **small),
        ]
    return [
        _tuning("icd10", 96, 16, ("unfused", "grouped", *_TRAINERS)),
        _tuning("arc_challenge", 96, 16, ("unfused", "grouped", *_TRAINERS, "TRL SFTTrainer")),
        _tuning("arc_challenge", 512, 128, ("unfused", *_TRAINERS)),
        _tuning("pubmedqa", 24, 4, ("unfused", *_TRAINERS)),
        _tuning("arc_challenge", 48, 4, _TRAINERS, network="qwen-0.5b"),
        _tuning("arc_challenge", 192, 64, ("unfused", *_TRAINERS), network="qwen-0.5b"),
        *(_distilling("icd10", 48, 16, peer) for peer in (_GKD, _STORED)),
        *(_distilling("arc_challenge", 48, 16, peer) for peer in (_GKD, _STORED)),
        _distilling("arc_challenge", 256, 128, _GKD),
        _scoring("icd10", 300, 128),
        _scoring("arc_challenge", 200, 64),
        _scoring("pubmedqa", 80, 32),
    ]


def _case(row: str, title: str, data: str, run: str, **more: Any) -> dict[str, Any]:
    common = {"part": row, "title": f"{row}: {title}", "run": f"benchmarks.gpu.speed:{run}", "data": data}
    return common | {"needs": needs(data, SMOLLM2), "pool": POOLS[data], "repetitions": 3} | more


def _tuning(
    data: str, examples: int, batch: int, sides: tuple[str, ...], network: str = "smollm2-10", **more: Any
) -> dict[str, Any]:
    title = f"{TITLES[network]}, {data}, {examples} examples, batch {batch}"
    more |= {"llm": network, "slm": network, "examples": examples, "batch_size": batch, "sides": (OURS, *sides)}
    return _case("B1", title, data, "tune", **more)


def _distilling(
    data: str,
    examples: int,
    batch: int,
    sides: tuple[str, ...],
    networks: tuple[str, str] = ("smollm2-30", "smollm2-10"),
    **more: Any,
) -> dict[str, Any]:
    llm, slm = networks
    title = f"{TITLES[llm]} and {TITLES[slm]}, {data}, {examples} examples, batch {batch}: {sides[0]}"
    more |= {"llm": llm, "slm": slm, "examples": examples, "batch_size": batch, "sides": (OURS, *sides)}
    return _case("B2", title, data, "distil", **more)


def _scoring(data: str, items: int, batch: int, network: str = "smollm2-30", **more: Any) -> dict[str, Any]:
    more |= {"llm": network, "slm": network, "items": items, "batch_size": batch, "peer_batch_size": batch}
    return _case("B3", f"{TITLES[network]}, {data}, {items} items, batch {batch}", data, "score", **more)


def tune(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the record of a row of B1."""
    sides = {}
    for name in case["sides"]:
        function, change = _TUNING[name]
        attention = {"attention": change["attention"]} if "attention" in change else {}
        sides[name] = function, with_models(case, **attention) | change
    yield _measured(case, sides, fine_tuning.same)


def distil(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the record of a row of B2."""
    prepared = with_models(case)
    sides = {name: (_DISTILLING[name][0], prepared) for name in case["sides"]}
    yield _measured(case, sides, distillation.same)


def score(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the record of a row of B3."""
    prepared = with_models(case)
    place = {"source": prepared["models"]["slm"]["source"], "layers": prepared["models"]["slm"].get("layers")}
    prepared |= place | {"peer_attention": "sdpa"}
    sides = {name: (function, prepared | change) for name, (function, change) in _SCORING.items()}
    yield _measured(case, sides, scoring.same)


def _measured(case: dict[str, Any], sides: dict[str, tuple[str, dict]], same: Any) -> dict[str, Any]:
    """Return the record of sides that took turns.

    Raises:
        RuntimeError: our side failed, so that there is nothing to compare with.
    """
    measured = Sides(sides)
    measured.measure(case["repetitions"])
    if OURS in measured.failed:
        raise RuntimeError(measured.failed[OURS])
    return measured.record(same, case.get("rate"))
