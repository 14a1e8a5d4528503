"""Accounting for differential privacy: the settings of a mechanism, and the ε at δ that it guarantees.

The mechanisms themselves are in `federation/secagg/noise.py` (level client) and `training/dp_sgd.py` (level example).
"""

import contextlib
import logging
import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from fedcollm.errors import UserError

#: Largest allowed correction of ε for sums of discrete Gaussians, relative to 1 / z (see `check_sum`).
_LARGEST_CORRECTION = 1e-9

#: Largest ε by Rényi accounting for which the finer bound is computed: above it, the grid would take much memory.
_LARGEST_FINE_EPSILON = 50.0
#: Step of the grid of privacy losses. On a coarser grid the bound is larger, never too small.
_LOSS_STEP = 1e-3


@dataclass(frozen=True)
class ClientPrivacy:
    """Privacy at level client, which hides the whole contribution of a client.

    Two federations are neighbors if one client's update is replaced by zero.

    Attributes:
        clip: largest L2 norm of a client's update.
        noise_multiplier: z; the noise in a sum over t clients has a standard deviation of at least z · clip, where t
            is the threshold of secure aggregation.
        delta: δ, the probability that the guarantee may fail.
    """

    clip: float
    noise_multiplier: float
    delta: float

    def to_wire(self) -> dict[str, str | float]:
        """Return the settings as plain values, for the agreement between all parties."""
        numbers = {"clip": self.clip, "noise_multiplier": self.noise_multiplier, "delta": self.delta}
        return {"level": "client", **numbers}

    def epsilon(self, rounds: int) -> float:
        """Return ε at δ after a number of rounds, which compose as Gaussian mechanisms, by Rényi accounting.

        A sum of discrete Gaussians is known to be as private as a Gaussian in terms of Rényi divergences (see
        `check_sum`), so a bound by its privacy loss distribution would not be justified.
        Client sampling does not amplify privacy here, because the server knows which clients it sampled.

        Raises:
            UserError: dp-accounting is not installed.
        """
        return _epsilon(_dp_accounting().GaussianDpEvent(self.noise_multiplier), rounds, self.delta)


@dataclass(frozen=True)
class ExamplePrivacy:
    """Privacy at level example, which hides each single example of a client.

    Two data sets are neighbors if one has one more example than the other.

    Attributes:
        clip: largest L2 norm of a per-example gradient.
        noise_multiplier: z; the sum of clipped gradients has noise of standard deviation z · clip.
        delta: δ, the probability that the guarantee may fail.
        sampling_rate: q, the probability that an example is in a step's batch.
        steps: number of optimizer steps per round.
    """

    clip: float
    noise_multiplier: float
    delta: float
    sampling_rate: float
    steps: int

    def to_wire(self) -> dict[str, str | float]:
        """Return the settings as plain values, for the agreement between all parties."""
        numbers = {"clip": self.clip, "noise_multiplier": self.noise_multiplier, "delta": self.delta}
        return {"level": "example", **numbers, "sampling_rate": self.sampling_rate, "steps": self.steps}

    def epsilon(self, rounds: int) -> float:
        """Return ε at δ after a number of rounds of DP-SGD (Abadi et al., arXiv 1607.00133) with Poisson sampling.

        It is the bound of the privacy loss distribution (PLD; Koskela et al., arXiv 1906.03049), which is 10 to 20 %
        below that of Rényi accounting. The value assumes that the client takes part in every round, and so holds for
        every client.

        Raises:
            UserError: dp-accounting is not installed.
        """
        dp = _dp_accounting()
        step = dp.PoissonSampledDpEvent(self.sampling_rate, dp.GaussianDpEvent(self.noise_multiplier))
        count = self.steps * rounds
        rough = _epsilon(step, count, self.delta)
        return rough if not 0 < rough <= _LARGEST_FINE_EPSILON else min(rough, _fine_epsilon(step, count, self.delta))


Privacy = ClientPrivacy | ExamplePrivacy


def missing(package: str) -> UserError:
    """Return the error for a package of the extra `privacy` that is not installed."""
    return UserError(
        f"federation.privacy needs the package {package}, which is not installed. "
        "Install it with: pip install 'fedcollm[privacy]'"
    )


def _dp_accounting() -> Any:
    """Return the module `dp_accounting`, which is imported on first use.

    Raises:
        UserError: it is not installed.
    """
    try:
        import dp_accounting.rdp  # pyright: ignore[reportMissingTypeStubs, reportUnusedImport]
    except ImportError as error:
        raise missing("dp-accounting") from error
    return dp_accounting


def _epsilon(event: Any, count: int, delta: float) -> float:
    """Return ε at δ of an event that happens `count` times, by Rényi accounting (Mironov, arXiv 1702.07476)."""
    if not count:
        return 0.0
    with _quiet():
        return float(_dp_accounting().rdp.RdpAccountant().compose(event, count).get_epsilon(delta))


def _fine_epsilon(event: Any, count: int, delta: float) -> float:
    """Return ε at δ of an event that happens `count` times, by its privacy loss distribution, rounded up to a grid."""
    try:
        import dp_accounting.pld  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise missing("dp-accounting") from error
    accountant: Any = dp_accounting.pld.PLDAccountant(value_discretization_interval=_LOSS_STEP)
    with _quiet():
        return float(accountant.compose(event, count).get_epsilon(delta))


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """Silence the accountant's line for each Rényi order that it can't compute. It skips such orders, which is safe."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def sum_correction(deviation: float, clients: int) -> float:
    """Return how far a sum of n discrete Gaussians may be from a discrete Gaussian.

    The bound is τ = 10 Σ_{k=1}^{n-1} exp(−2π² σ² k / (k + 1)), from Theorem 1 of Kairouz, Liu and Steinke, arXiv
    2102.06387.

    Args:
        deviation: σ, the standard deviation of one client's noise, in steps of the fixed-point grid.
        clients: n, the number of clients in the sum.

    >>> sum_correction(0.5, 2)  # 10 exp(−π² / 4)
    0.848...
    """
    return 10 * math.fsum(math.exp(-2 * math.pi**2 * deviation**2 * k / (k + 1)) for k in range(1, clients))


def check_sum(deviation: float, clients: int, dimension: int, noise_multiplier: float) -> None:
    """Check that each client's noise is large enough on the grid for the sum to be as private as Gaussian noise.

    The sum of n clients' noise satisfies ½ ε²-concentrated differential privacy with ε = 1 / z + τ √d (the same
    Theorem 1, with τ from `sum_correction`). The accountant uses 1 / z alone, so τ √d must be negligible: at most 1e-9
    of 1 / z. In practice, a standard deviation of 2 grid steps is enough for any n and d.

    Args:
        deviation: σ, the standard deviation of one client's noise, in steps of the fixed-point grid.
        clients: n, the number of clients in the sum.
        dimension: d, the number of parameters.
        noise_multiplier: z, as in `ClientPrivacy`.

    Raises:
        UserError: τ √d is not negligible.
    """
    excess = sum_correction(deviation, clients) * math.sqrt(dimension) * noise_multiplier
    if excess > _LARGEST_CORRECTION:
        raise UserError(
            f"federation.privacy: a client's noise has a standard deviation of {deviation:.3g} steps of the "
            f"fixed-point grid, too few for the guarantee to hold (correction {excess:.2g}). Raise noise_multiplier, "
            "or lower federation.fraction."
        )
