"""Part `profile`: where the time of a step goes, and every line of Python that waits for the GPU."""

import collections
import re
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from benchmarks.gpu.device import wait
from benchmarks.gpu.networks import TITLES, with_models
from benchmarks.gpu.speed import POOLS, TINY_POOL
from benchmarks.speed.material import SMOLLM2, needs
from benchmarks.speed.worker import resolve

#: Kind of a kernel to a pattern of its name, the first that fits.
KINDS = {
    "attention": "flash|fmha|attention|cudnn_generated|softmax_warp_backward",
    "matrix products": "gemm|nvjet|cutlass|xmma|splitk|cublas",
    "optimizer": "adam|multi_tensor",
    "softmax and loss": "softmax|nll",
    "reductions": "reduce",
    "copies and casts": "copy|memcpy|cat",
    "indexing": "index|gather|scatter|embedding|scan|nonzero|radix",
    "pointwise": "elementwise|triton_poi|vectorized",
    "triton": "triton",
}

#: Calls on the CPU that are counted: launches, copies and what waits for them.
CALLS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpyAsync",
    "cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::item",
)

_TUNE, _TRAINER = "benchmarks.speed.fine_tuning:ours", "benchmarks.speed.fine_tuning:trainer"

#: Name of a side -> function of benchmarks.speed, and what it changes in the case.
_SIDES = {
    "fit": (_TUNE, {}),
    "fit, unfused": (_TUNE, {"fused": False}),
    "Trainer, autocast": (_TRAINER, {"autocast": True}),
    "distil": ("benchmarks.speed.distillation:ours", {}),
    "evaluate": ("benchmarks.speed.scoring:ours", {}),
}


def cases(tiny: bool) -> list[dict[str, Any]]:
    """Return the cases that were measured, and those of distillation and scoring, which were not."""
    tuning = tuple(_SIDES)[:3]
    if tiny:
        small = {"pool": TINY_POOL, "networks": ("tiny-3", "tiny-2")}
        return [_case("icd10", 8, 4, sides, **small) for sides in (tuning, ("distil",), ("evaluate",))]
    return [
        _case("icd10", 32, 16, tuning),
        _case("arc_challenge", 64, 16, tuning),
        _case("arc_challenge", 512, 128, tuning[:2]),
        _case("arc_challenge", 64, 16, ("distil",)),
        _case("arc_challenge", 256, 64, ("evaluate",)),
    ]


def _case(data: str, examples: int, batch: int, sides: tuple[str, ...], **more: Any) -> dict[str, Any]:
    llm, slm = more.pop("networks", ("smollm2-30", "smollm2-10"))
    return {
        "part": "profile",
        "title": f"{sides[0]}, {TITLES[llm if sides == ('evaluate',) else slm]}, {data}, batch {batch}",
        "run": "benchmarks.gpu.profile:steps",
        "llm": llm,
        "slm": slm,
        "data": data,
        "examples": examples,
        "items": examples,
        "batch_size": batch,
        "sides": sides,
        "needs": needs(data, SMOLLM2),
        "pool": POOLS[data],
        **more,
    }


def steps(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield two records for every side: times and kernels of a step, and its waits for the GPU."""
    count = -(-case["examples"] // case["batch_size"])
    prepared = with_models(case)
    llm = prepared["models"]["llm"]
    prepared |= {"source": llm["source"], "layers": llm.get("layers")}  # scoring takes the larger network
    for name in case["sides"]:
        function, change = _SIDES[name]
        repeat = resolve(function)(prepared | change)
        yield {"label": name, "steps": count} | time_and_kernels(repeat, count)
        if torch.cuda.is_available():
            yield {"label": f"{name}: waits", "steps": count} | waits(repeat, count)


def time_and_kernels(repeat: Callable[[], dict[str, Any]], count: int) -> dict[str, Any]:
    """Return wall-clock and GPU time of a step, by kind of kernel, and what the CPU calls; all per step.

    Args:
        repeat: runs once, and says its `seconds`.
        count: steps of a run.
    """
    repeat()
    wall = repeat()["seconds"]
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profiler(activities=activities, acc_events=True) as profiled:
        repeat()
        wait()
    kinds, names, launched, calls = (collections.Counter() for _ in range(4))
    for event in profiled.events() or ():
        if str(event.device_type).endswith("CUDA"):
            microseconds = event.time_range.elapsed_us()
            if event.name.startswith(("ProfilerStep", "aten::", "Optimizer")) or microseconds <= 0:
                continue  # marks of a span, not kernels
            kinds[kind_of(event.name)] += microseconds
            names[event.name[:90]] += microseconds
            launched[event.name[:90]] += 1
        elif event.name in CALLS:
            calls[event.name] += 1
    busy = sum(kinds.values())
    return {
        "milliseconds": {"wall": 1e3 * wall / count, "GPU": busy / 1e3 / count},
        "busy_share": busy / 1e6 / wall,
        "kernels": sum(launched.values()) / count,
        "milliseconds_by_kind": {kind: value / 1e3 / count for kind, value in kinds.most_common()},
        "calls": {name: value / count for name, value in calls.items()},
        "longest": [[name, value / 1e3 / count, launched[name] / count] for name, value in names.most_common(14)],
    }


def kind_of(kernel: str) -> str:
    """Return the kind of a kernel by its name.

    >>> kind_of("void at::native::vectorized_elementwise_kernel<4, ...>"), kind_of("nvjet_tst_128x128"), kind_of("x")
    ('pointwise', 'matrix products', 'other')
    """
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel.lower())), "other")


def waits(repeat: Callable[[], Any], count: int) -> dict[str, Any]:
    """Return how often a step waits for the GPU, by the file and line that does so."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            start = time.perf_counter()
            repeat()
            seconds = time.perf_counter() - start
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = collections.Counter(
        "/".join(Path(warning.filename).parts[-3:]) + f":{warning.lineno}"
        for warning in caught
        if "synchroniz" in str(warning.message)
    )
    found = {place: number / count for place, number in places.most_common(16)}
    return {"per_step": sum(places.values()) / count, "seconds_of_run": seconds, "places": found}
