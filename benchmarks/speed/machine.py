"""What the machine can do, and what is installed: `python -m benchmarks.speed.machine` prints it as JSON."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "lm_eval", "flwr", "ray")

#: Sides of the square matrices.
SIZES = (2048, 4096)


def describe(threads: str) -> dict[str, Any]:
    """CPU, rates and versions, measured in a process of its own with this many threads."""
    command = [sys.executable, "-m", "benchmarks.speed.machine"]
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def rates(dtype: torch.dtype) -> dict[str, float]:
    """FLOP/s of square matrix products by each path that torch has to oneDNN and MKL, the best over `SIZES`.

    A product of n x n matrices counts 2 n³ operations; the best of five, after one that warms up.
    """
    found: dict[str, float] = {}
    for size in SIZES:
        one, other = (torch.randn(size, size).to(dtype) for _ in range(2))
        for name, product in _products(one, other).items():
            found[name] = max(found.get(name, 0.0), 2 * size**3 / _best_seconds(product))
    return found


def _products(one: Tensor, other: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Name of a path -> the product of two square matrices by it."""
    blocked = one.to_mkldnn(), other.to_mkldnn()
    packed = torch.ops.mkldnn._reorder_linear_weight(other, len(one))
    products = {
        "torch.mm": lambda: one @ other,
        "functional.linear": lambda: functional.linear(one, other),
        "oneDNN linear": lambda: torch.ops.aten.mkldnn_linear(*blocked, None),
        "oneDNN, packed weight": lambda: torch.ops.mkldnn._linear_pointwise(one, packed, None, "none", [], ""),
    }
    if one.dtype == torch.float32 and torch.backends.mkl.is_available():
        mkl = torch.ops.mkl._mkl_reorder_linear_weight(other, len(one))
        products["MKL, packed weight"] = lambda: torch.ops.mkl._mkl_linear(one, mkl, other, None, len(one))
    return products


def _best_seconds(product: Callable[[], Tensor]) -> float:
    product()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - start)
    return best


def _processor() -> str:
    """Name and feature flags that matter to matrix products."""
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    family = f"family {facts.get('cpu family', '?')}, model {facts.get('model', '?')}"
    flags = ", ".join(flag for flag in wanted if flag in facts.get("flags", "").split())
    return f"{facts.get('model name', platform.machine())} ({family}; {flags})"


def main() -> None:
    """Print everything as JSON."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory_bytes,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": {name: installed_version(name) for name in PACKAGES},
        "flop_rates": {str(dtype)[6:]: rates(dtype) for dtype in (torch.float32, torch.bfloat16)},
    }
    print(json.dumps(facts))


def installed_version(package: str) -> str:
    """Return the version of an installed package, or "absent"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    main()
