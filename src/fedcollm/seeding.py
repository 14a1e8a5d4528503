"""Seeds that come from identity (run, role, client, round), never from the order of calls."""

import hashlib
from dataclasses import dataclass


def derive_seed(seed: int, *identity: str | int) -> int:
    """Return a 31-bit seed that depends on the run's seed and on who asks, and on nothing else.

    >>> derive_seed(0, "client", "2", 5) == derive_seed(0, "client", "2", 5)
    True
    >>> derive_seed(0, "client", "2", 5) == derive_seed(0, "client", "2", 6)
    False
    """
    text = "/".join(str(part) for part in (seed, *identity))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class RunIdentity:
    """Which run this is: what its parties call it, and the seed that everything random in it comes from.

    Attributes:
        run: name that server and clients know it by.
        seed: of the run.
    """

    run: str = ""
    seed: int = 0

    def derive(self, *identity: str | int) -> int:
        """Return the seed of a part of the run, as `derive_seed`."""
        return derive_seed(self.seed, *identity)
