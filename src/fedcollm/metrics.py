"""What a process measures about itself."""

import sys


def peak_memory_bytes() -> int:
    """Return the highest resident memory of this process so far, in bytes.

    Where the system does not record the highest value, this is the memory resident now.
    """
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux KiB
