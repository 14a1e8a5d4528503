"""What this machine has to spare: cores and memory, and so how many runs go at once."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

#: Of a process before it has any model: Python, torch and the other libraries; more where CUDA is loaded too.
LIBRARIES_BYTES, CUDA_LIBRARIES_BYTES = 1_000_000_000, 3_000_000_000

_GROUP = Path("/sys/fs/cgroup")  # where Linux has control groups


def cores() -> int:
    """Return the number of cores that this process may use: its CPU affinity, within its control group's quota."""
    affinity = getattr(psutil.Process(), "cpu_affinity", None)  # macOS has none
    allowed = len(affinity()) if affinity else psutil.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = (_GROUP / "cpu.max").read_text(encoding="utf-8").split()
        allowed = min(allowed, max(1, int(quota) // int(period)))  # "max" is no number: no quota
    return allowed


def available_bytes() -> int:
    """Return the memory that new processes can take without swapping, within the control group's limit, in bytes."""
    available = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError, KeyError):
        used = int((_GROUP / "memory.current").read_text(encoding="utf-8"))
        counts = dict(line.split() for line in (_GROUP / "memory.stat").read_text(encoding="utf-8").splitlines())
        limit = int((_GROUP / "memory.max").read_text(encoding="utf-8"))
        available = min(available, limit - used + int(counts["inactive_file"]))
    return available


def asked_threads() -> int | None:
    """Threads a process that the user asks for with OMP_NUM_THREADS."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdecimal() and int(value) else None


def threads_each(jobs: int) -> int:
    """Threads of each of several processes, so that all of them together have a core a thread."""
    return max(1, min(cores() // jobs, asked_threads() or cores()))


def fitting_jobs(needs_bytes: Iterable[int], cuda: bool = False) -> int:
    """How many runs go at once in this machine's memory and cores, at least one.

    Args:
        needs_bytes: estimates of what runs take; any of them may meet its like, so the largest counts.
        cuda: whether they load CUDA, whose own memory is not looked at.
    """
    need = max(needs_bytes, default=0) + (CUDA_LIBRARIES_BYTES if cuda else LIBRARIES_BYTES)
    return max(1, min(available_bytes() // need, cores() // (asked_threads() or 1)))
