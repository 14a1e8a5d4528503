"""One side of a pair, as a process: `python -m benchmarks.speed.worker MODULE:FUNCTION JSON_CASE`.

FUNCTION(case) loads and returns `repeat`. The process then says on its real standard output what loading took, and
answers each line "run" on its standard input with the figures of one repetition, as one JSON line, with its peak memory
since it was loaded. Whatever libraries print goes to standard error. It ends with its standard input.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def resolve(name: str) -> Callable[..., Any]:
    """The function that "MODULE:FUNCTION" names."""
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def memory_bytes(field: str) -> int:
    """`VmRSS` (resident now) or `VmHWM` (its peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(kilobytes)


def return_freed_memory() -> None:
    """Give the system what loading has freed, as far as the C library can."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def forget_peak() -> None:
    """Let `VmHWM` start again from what is resident now; where the kernel refuses, it goes on."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Load, then obey."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    function, case = sys.argv[1:]
    repeat = resolve(function)(json.loads(case))
    return_freed_memory()
    loading = {"loading_peak_bytes": memory_bytes("VmHWM"), "loaded_bytes": memory_bytes("VmRSS")}
    print(json.dumps(loading), file=answers)
    forget_peak()
    for line in sys.stdin:
        if line.strip() == "run":
            figures = repeat()
            peak_bytes = memory_bytes("VmHWM")
            measured = {"peak_bytes": peak_bytes, "added_bytes": peak_bytes - loading["loaded_bytes"]}
            # a side that starts processes of its own measures them itself
            print(json.dumps(figures if "peak_bytes" in figures else figures | measured), file=answers)


if __name__ == "__main__":
    main()
