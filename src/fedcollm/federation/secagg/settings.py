"""What the parties of a federation agree on before they use secure aggregation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedcollm.config import RunConfig, asked_clients
from fedcollm.federation.download_format import EXACT, DownloadFormat
from fedcollm.federation.secagg.fixed_point import FixedPoint
from fedcollm.federation.statistics import asked_for
from fedcollm.messages import TrainRequest, default_threshold
from fedcollm.privacy.accounting import Privacy


@dataclass(frozen=True)
class SecureSettings:
    """What all parties of a federation agree on for secure aggregation.

    Attributes:
        encoding: fixed-point encoding of the clients' vectors.
        roster: client id to public signing key.
        threshold: t; None for the smallest integer above 2n/3.
        uniform: whether all clients have the same weight, as they always do under differential privacy.
        privacy: differential privacy of the clients; None without it.
        least: t is no smaller than this, however few clients are invited; see `smallest_sum`.
        max_update_norm: largest L2 norm of one client's change, which the server checks of the mean.
        download: the form in which a client receives θ.
    """

    encoding: FixedPoint
    roster: Mapping[str, Ed25519PublicKey] = field(repr=False)
    threshold: int | None = None
    uniform: bool = False
    privacy: Privacy | None = None
    max_update_norm: float = math.inf
    least: int = 0
    download: DownloadFormat = field(repr=False, default=EXACT)

    def encoding_of(self, request: TrainRequest) -> FixedPoint:
        """Return the encoding of the answers to a request; statistics always have all bits of a word."""
        return self.encoding.whole if asked_for(request) else self.encoding

    def to_wire(self) -> dict[str, Any]:
        """Return, as plain values, what every party must have agreed to. It is part of a session's digest."""
        privacy = self.privacy.to_wire() if self.privacy else None
        shared = {"encoding": self.encoding.to_wire(), "uniform": self.uniform, "privacy": privacy}
        return shared | {"threshold": self.threshold, "least": self.least}

    def threshold_of(self, invited: int) -> int:
        """Return t of a session to which so many clients are invited."""
        return max(self.least, default_threshold(invited)) if self.threshold is None else self.threshold


def smallest_sum(config: RunConfig) -> int:
    """Return the smallest number of clients in a sum that secure aggregation opens, as a configuration promises it.

    It depends on the configuration alone, which each client keeps as it accepted it. So it holds for the whole run,
    however few clients a roster has.
    """
    named = config.federation.participants
    clients = (config.task.clients or 3) if named is None else len(named)
    least = default_threshold(asked_clients(clients, config.federation.fraction))
    return config.federation.secure_aggregation.threshold or least
