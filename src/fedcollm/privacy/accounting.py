"""Differential privacy as numbers: what is promised (ε at δ), and what of noise and clipping it takes.

The mechanisms are in `federation.differential_privacy` (a client's whole part) and in `private_training` (an example).
"""

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fedcollm.errors import UserError

_LARGEST_CORRECTION = 1e-9


@dataclass(frozen=True)
class ClientPrivacy:
    """Hides a client's whole part: neighbours are two federations of which one has a client's change replaced by zero.

    Attributes:
        clip: largest L2 norm of a client's change.
        noise_multiplier: z; the sum of t clients has noise of standard deviation z · clip at least.
        delta: δ.
    """

    clip: float
    noise_multiplier: float
    delta: float

    def to_wire(self) -> dict[str, str | float]:
        """Return the promise as plain values, for what all parties agree on."""
        numbers = {"clip": self.clip, "noise_multiplier": self.noise_multiplier, "delta": self.delta}
        return {"level": "client", **numbers}

    def epsilon(self, rounds: int) -> float:
        """ε at δ after so many rounds: that many Gaussian mechanisms.

        Drawing some of the clients for a round gains nothing: the server knows whom it drew.

        Raises:
            UserError: dp-accounting is not installed.
        """
        return _epsilon(_dp_accounting().GaussianDpEvent(self.noise_multiplier), rounds, self.delta)


@dataclass(frozen=True)
class ExamplePrivacy:
    """Hides one example of a client: neighbours are two data sets of which one has an example more.

    Attributes:
        clip: largest L2 norm of an example's gradient.
        noise_multiplier: z; the sum of clipped gradients has noise of standard deviation z · clip.
        delta: δ.
        sampling_rate: q, the chance of every example to be in a step's batch.
        steps: steps of a round.
    """

    clip: float
    noise_multiplier: float
    delta: float
    sampling_rate: float
    steps: int

    def to_wire(self) -> dict[str, str | float]:
        """Return the promise as plain values, for what all parties agree on."""
        numbers = {"clip": self.clip, "noise_multiplier": self.noise_multiplier, "delta": self.delta}
        return {"level": "example", **numbers, "sampling_rate": self.sampling_rate, "steps": self.steps}

    def epsilon(self, rounds: int) -> float:
        """ε at δ after so many rounds: DP-SGD (Abadi et al., arXiv 1607.00133) with Poisson sampling.

        It is counted as if the client were drawn in every round, and is the same for all clients.

        Raises:
            UserError: dp-accounting is not installed.
        """
        dp = _dp_accounting()
        step = dp.PoissonSampledDpEvent(self.sampling_rate, dp.GaussianDpEvent(self.noise_multiplier))
        return _epsilon(step, self.steps * rounds, self.delta)


Privacy = ClientPrivacy | ExamplePrivacy


def missing(package: str) -> UserError:
    """The error for a package of the extra `privacy` that is not installed."""
    return UserError(
        f"federation.privacy needs the package {package}, which is not installed. "
        "Install it with: pip install 'fedcollm[privacy]'"
    )


def _dp_accounting() -> Any:
    """The module, imported on first use.

    Raises:
        UserError: it is not installed.
    """
    try:
        import dp_accounting
        import dp_accounting.rdp
    except ImportError as error:
        raise missing("dp-accounting") from error
    return dp_accounting


def _epsilon(event: Any, count: int, delta: float) -> float:
    """ε at δ of `count` times the event, by Rényi differential privacy (Mironov, arXiv 1702.07476)."""
    if not count:
        return 0.0
    with _quiet():
        return float(_dp_accounting().rdp.RdpAccountant().compose(event, count).get_epsilon(delta))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without a line for every Rényi order that the accountant has no value for: it leaves them out, which is safe."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def sum_correction(deviation: float, clients: int) -> float:
    """τ = 10 Σ_{k=1}^{n-1} exp(−2π² σ² k / (k + 1)): how far a sum of n discrete Gaussians is from being one.

    Kairouz, Liu and Steinke, arXiv 2102.06387, Theorem 1.

    Args:
        deviation: σ, of one client's noise in units of the grid.
        clients: n.

    >>> sum_correction(0.5, 2)  # 10 exp(−π² / 4)
    0.848...
    """
    return 10 * math.fsum(math.exp(-2 * math.pi**2 * deviation**2 * k / (k + 1)) for k in range(1, clients))


def check_sum(deviation: float, clients: int, dimension: int, noise_multiplier: float) -> None:
    """Refuse noise so small on the grid that its sum is no Gaussian's any more.

    The sum of n clients' noise satisfies ½ ε²-concentrated privacy with ε = 1 / z + τ √d (the same Theorem 1; z as in
    `ClientPrivacy`, d parameters, τ of `sum_correction`). The accountant takes 1 / z, so τ √d must be negligible beside
    it: 1e-9 of it at most. A deviation of 2 steps of the grid is enough for any n and d in practice.

    Args:
        deviation: σ, of one client's noise in units of the grid.
        clients: n.
        dimension: d, number of parameters.
        noise_multiplier: z.

    Raises:
        UserError: it is not negligible.
    """
    excess = sum_correction(deviation, clients) * math.sqrt(dimension) * noise_multiplier
    if excess > _LARGEST_CORRECTION:
        raise UserError(
            f"federation.privacy: a client's noise has a standard deviation of {deviation:.3g} steps of the "
            f"fixed-point grid, too few for the guarantee to hold (correction {excess:.2g}). Raise noise_multiplier, "
            "or ask fewer clients."
        )
