"""What the parties of a federation agree on before any of them masks anything."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedcollm.federation.secagg.fixed_point import FixedPoint
from fedcollm.privacy.accounting import Privacy


@dataclass(frozen=True)
class SecureSettings:
    """What all parties of a federation agree on for secure aggregation.

    Attributes:
        encoding: of the clients' vectors.
        roster: id to public signing key.
        threshold: t; None: the smallest above 2n/3.
        uniform: clients weigh the same; always so under privacy.
        privacy: of the clients.
    """

    encoding: FixedPoint
    roster: Mapping[str, Ed25519PublicKey] = field(repr=False)
    threshold: int | None = None
    uniform: bool = False
    privacy: Privacy | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return what every party must have agreed to, as plain values: part of a session's digest."""
        privacy = self.privacy.to_wire() if self.privacy else None
        return {"encoding": self.encoding.to_wire(), "uniform": self.uniform, "privacy": privacy}
