"""Find out how many runs fit into the free memory and the cores of this machine at the same time."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

#: Memory of a process before it has loaded a model: Python, torch and the other libraries, without and with CUDA.
LIBRARIES_BYTES, CUDA_LIBRARIES_BYTES = 1_000_000_000, 3_000_000_000

#: Files of this process's control group on Linux.
_GROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Return the number of cores that this process may use, given its CPU affinity and its control group's quota."""
    affinity = getattr(psutil.Process(), "cpu_affinity", None)  # macOS has none
    allowed = len(affinity()) if affinity else psutil.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = (_GROUP / "cpu.max").read_text(encoding="utf-8").split()
        allowed = min(allowed, max(1, int(quota) // int(period)))  # without a quota, it is "max" and not a number
    return allowed


def available_bytes() -> int:
    """Return the memory, in bytes, that new processes can take without swapping, within the control group's limit."""
    available = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError, KeyError):
        used = int((_GROUP / "memory.current").read_text(encoding="utf-8"))
        counts = dict(line.split() for line in (_GROUP / "memory.stat").read_text(encoding="utf-8").splitlines())
        limit = int((_GROUP / "memory.max").read_text(encoding="utf-8"))
        available = min(available, limit - used + int(counts["inactive_file"]))
    return available


def asked_threads() -> int | None:
    """Return the number of threads per process that OMP_NUM_THREADS asks for; None if it is not set to a number."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdecimal() and int(value) else None


def threads_each(jobs: int) -> int:
    """Return the number of threads for each of several processes, so that together they have one thread per core."""
    return max(1, min(cores() // jobs, asked_threads() or cores()))


def fitting_jobs(needs_bytes: Iterable[int], cuda: bool = False) -> int:
    """Return how many runs fit into the free memory and the cores of this machine at the same time; at least one.

    Args:
        needs_bytes: estimated memory of each run; the largest one counts, because any runs may coincide.
        cuda: whether the runs load CUDA. The memory of the GPU is not checked.
    """
    need = max(needs_bytes, default=0) + (CUDA_LIBRARIES_BYTES if cuda else LIBRARIES_BYTES)
    return max(1, min(available_bytes() // need, cores() // (asked_threads() or 1)))
