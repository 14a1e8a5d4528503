"""What this process does with its memory: sizes in text, and memory that is given back to the operating system."""

import contextlib
import ctypes
import os
import re

from fedcollm.errors import UserError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # of glibc's malloc.h


def parse_bytes(text: str) -> int:
    """Return the number of bytes that a text such as `700MB` or `1.5 GiB` names.

    Raises:
        UserError: the text is no size.

    >>> parse_bytes("700MB"), parse_bytes("1.5 GiB")
    (700000000, 1610612736)
    """
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([KMG]I?|)B?", text.strip().upper())
    size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if not size:
        raise UserError(f"--memory-limit {text!r:.40}: give a size with its unit, such as 700MB or 1.5GiB.")
    return size


def give_back() -> None:
    """Return memory that was freed to the operating system; glibc would keep it."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def save_memory() -> None:
    """Let this process hold less memory, for some time more. It must be called before the first product of matrices.

    oneDNN keeps 32 compiled products in place of 1,024, and torch keeps one: a client then held 467 MB in place of 616,
    and training took 14 % more time.
    glibc uses one arena for all threads, and maps tensors of 1 MiB and more on their own, so that they leave at once.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "1")
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        library = ctypes.CDLL(None)
        for option, value in ((_MMAP_THRESHOLD, 2**20), (_ARENA_MAX, 1)):
            library.mallopt(option, value)
