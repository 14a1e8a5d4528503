"""Part `machine`: the rates of the device, which other parts are held against, and what is installed."""

import os
import platform
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

from benchmarks.gpu.device import best_seconds, device, wait
from benchmarks.speed.machine import installed_version

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "trl",
    "lm_eval",
    "datasets",
    "triton",
    "tokenizers",
    "numpy",
)

#: Rows, inputs and outputs of our own products: the layers of SmolLM2 and Qwen2.5 with A beside W, and their heads.
SHAPES = {
    "SmolLM2 query, key, value + A": (16384, 576, 984),
    "SmolLM2 gate, up + A": (16384, 576, 3088),
    "SmolLM2 down + A": (16384, 1536, 584),
    "Qwen2.5-0.5B gate, up + A": (8192, 896, 9744),
    "Qwen2.5-0.5B down + A": (8192, 4864, 904),
    "Qwen2.5-1.5B gate, up + A": (8192, 1536, 17936),
    "Qwen2.5-1.5B down + A": (8192, 8960, 1544),
    "SmolLM2 head": (128, 576, 49152),
    "Qwen2.5-0.5B head": (128, 896, 151936),
}


def cases(tiny: bool) -> list[dict[str, Any]]:
    """Return the one case of this part."""
    sides, rows = ([256, 512], 16) if tiny else ([4096, 8192], None)
    return [
        {"part": "machine", "title": "rates", "run": "benchmarks.gpu.machine:rates", "sides": sides, "most_rows": rows}
    ]


def rates(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the device's name, versions, and rates in operations per second; 2 n³ for a product of n x n matrices."""
    square = {side: square_rate(side) for side in case["sides"]}
    yield {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: installed_version(name) for name in PACKAGES},
        "bf16_rate": max(square.values()),
        "bf16_rates": square,
        "shape_rates": {name: shape_rate(*shape, case["most_rows"]) for name, shape in SHAPES.items()},
        **(memory_rates() if torch.cuda.is_available() else {}),
    }


def square_rate(side: int) -> float:
    """Return the rate of a bfloat16 product of two random square matrices, the best of 5 series of 10."""
    one, other = (torch.randn(side, side, device=device(), dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / best_seconds(lambda: one @ other, calls=10, series=5)


def shape_rate(rows: int, inputs: int, outputs: int, most_rows: int | None) -> float:
    """Return the rate of x Wᵀ in bfloat16 for x [rows, inputs] and W [outputs, inputs]."""
    rows = min(rows, most_rows or rows)
    x = torch.randn(rows, inputs, device=device(), dtype=torch.bfloat16)
    weight = torch.randn(outputs, inputs, device=device(), dtype=torch.bfloat16)
    return 2 * rows * inputs * outputs / best_seconds(lambda: functional.linear(x, weight), calls=20, series=1)


def memory_rates() -> dict[str, float]:
    """Return bytes read and written per second by a copy in the GPU's memory, and the seconds that one launch takes."""
    one = torch.randn(2**28, device=device())
    other = torch.empty_like(one)
    copying = best_seconds(lambda: other.copy_(one), calls=10, series=1, warm_up=1)
    small = torch.zeros(16, device=device())
    wait()
    start = time.perf_counter()
    for _ in range(5000):
        small.add_(1)
    launching = (time.perf_counter() - start) / 5000
    wait()
    return {"copy_bytes_per_second": 2 * one.nbytes / copying, "launch_seconds": launching}
