"""Seeds that are derived from an identity (run, role, client, round), never from the order of calls."""

import hashlib
from dataclasses import dataclass


def derive_seed(seed: int, *identity: str | int) -> int:
    """Return a 31-bit seed that depends only on the run's seed and on the identity of the caller.

    Args:
        seed: the run's seed.
        identity: what the random numbers are for, such as `"client", "2", 5` for client 2 in round 5.

    >>> derive_seed(0, "client", "2", 5) == derive_seed(0, "client", "2", 5)
    True
    >>> derive_seed(0, "client", "2", 5) == derive_seed(0, "client", "2", 6)
    False
    """
    text = "/".join(str(part) for part in (seed, *identity))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class RunIdentity:
    """The identity of a run: its name, and the seed from which all of its randomness is derived.

    Attributes:
        run: the name by which the server and the clients know the run.
        seed: the run's seed.
    """

    run: str = ""
    seed: int = 0

    def derive(self, *identity: str | int) -> int:
        """Return the seed for one part of the run (see `derive_seed`)."""
        return derive_seed(self.seed, *identity)
