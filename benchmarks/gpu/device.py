"""The device that is measured, its clock and its memory."""

import gc
import time
from collections.abc import Callable
from typing import Any

import torch

from fedcollm.models.adapters import resolve_device


def device() -> torch.device:
    """Return CUDA where there is one, else the CPU."""
    return resolve_device("auto")


def wait() -> None:
    """Return when the GPU has done everything that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clear() -> None:
    """Give back memory that nothing needs any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_bytes_of(function: Callable[[], Any]) -> tuple[Any, int]:
    """Return what a function returns, and what it adds to the GPU's memory at its peak; 0 without a GPU."""
    gc.collect()
    if not torch.cuda.is_available():
        return function(), 0
    wait()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = function()
    wait()
    return result, torch.cuda.max_memory_allocated() - before


def best_seconds(function: Callable[[], Any], calls: int, series: int = 3, warm_up: int = 3) -> float:
    """Return the seconds of one call: the best mean of several series of calls, each waited for at its end."""
    for _ in range(warm_up):
        function()
    wait()
    best = float("inf")
    for _ in range(series):
        start = time.perf_counter()
        for _ in range(calls):
            function()
        wait()
        best = min(best, (time.perf_counter() - start) / calls)
    return best
