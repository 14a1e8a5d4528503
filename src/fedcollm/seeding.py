"""Seeds that come from identity (run, role, client, round), never from the order of calls."""

import hashlib
import random

import numpy as np
import torch


def derive_seed(seed: int, *identity: str | int) -> int:
    """A 31-bit seed that depends on the run's seed and on who asks, and on nothing else.

    >>> derive_seed(0, "client", "2", 5) == derive_seed(0, "client", "2", 5)
    True
    >>> derive_seed(0, "client", "2", 5) == derive_seed(0, "client", "2", 6)
    False
    """
    text = "/".join(str(part) for part in (seed, *identity))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def seed_everything(seed: int, *identity: str | int) -> int:
    """Seed Python, NumPy and torch from an identity; returns the derived seed."""
    derived = derive_seed(seed, *identity)
    random.seed(derived)
    np.random.seed(derived)
    torch.manual_seed(derived)
    return derived
