"""A client's side of client-level privacy: clip the update, round it, and add noise, on secure aggregation's grid.

This is the distributed discrete Gaussian mechanism of Kairouz, Liu and Steinke (arXiv 2102.06387, Algorithm 1), without
its random rotation: with 32 bits, the fixed-point grid is so fine that no coordinate needs to be flattened. Every
client adds a share of the noise, and the shares of any t clients add up to the full noise. The share of a single client
hides little: secure aggregation ensures that the server sees only sums over at least t clients.
"""

import math

import numpy as np
import torch

from fedcollm.errors import UserError
from fedcollm.federation.secagg.fixed_point import FixedPoint
from fedcollm.messages import Adapter
from fedcollm.privacy.accounting import ClientPrivacy, check_sum
from fedcollm.privacy.discrete_gaussian import discrete_gaussian
from fedcollm.privacy.keystream import SecureStream

_TAIL = 15.0  # room for 12 standard deviations of the noise of 3t/2 clients: 12 √1.5 is 14.7
_ROOM = 1.05  # room for the norm that rounding adds


def private_fixed_point(clients: int, privacy: ClientPrivacy) -> FixedPoint:
    """Return the encoding whose sums don't overflow: R = 1.05 c (1 + 15 z / K), with clip c and noise multiplier z.

    A sum below K R 2^f < 2³¹ has room for K clipped changes and for 12 standard deviations of the noise. At most 3t/2
    clients are in a sum, so its noise has a standard deviation of at most √1.5 z c. Larger noise has a probability of
    2 exp(−72), or 1e-31, per parameter and round. It would corrupt that parameter, but cost no privacy.

    Args:
        clients: K, the largest number of clients in a sum.
        privacy: c and z.
    """
    return FixedPoint(clients, 1, _ROOM * privacy.clip * (1 + _TAIL * privacy.noise_multiplier / clients))


def sensitivity(norm: float, dimension: int) -> float:
    """Return the largest norm after rounding, Δ̃ = min{c + √d, √(c² + d/4 + √(2 log 1/β) (c + √d/2))}, β = e^(−1/2).

    Args:
        norm: c, the largest L2 norm before rounding, in steps of the grid.
        dimension: d, the number of parameters.

    >>> sensitivity(3.0, 4)  # min{5, √(9 + 1 + 3 + 1)}
    3.7416573867739413
    """
    root = math.sqrt(dimension)
    return min(norm + root, math.sqrt(norm**2 + dimension / 4 + norm + root / 2))


def check_grid(encoding: FixedPoint, privacy: ClientPrivacy, clients: int, threshold: int, dimension: int) -> None:
    """Refuse a grid on which the mechanism would not be the one that the accountant assumes.

    Args:
        encoding: the encoding, from `private_fixed_point`.
        privacy: privacy of the clients.
        clients: n, the largest number of clients in a sum.
        threshold: t.
        dimension: d, the number of parameters of the adapter.

    Raises:
        UserError: rounding adds too much to the norm of a change, or the noise is too small; see `check_sum`.
    """
    norm = privacy.clip * 2.0**encoding.fraction_bits
    bound = sensitivity(norm, dimension)
    if bound > _ROOM * norm:
        raise UserError(
            f"federation.privacy: {clients} clients leave {norm:.3g} steps of the fixed-point grid to a change of "
            f"{privacy.clip:g}, too few for {dimension} parameters. Lower noise_multiplier, or ask fewer clients."
        )
    deviation = privacy.noise_multiplier * bound / math.sqrt(threshold)
    check_sum(deviation, clients, dimension, privacy.noise_multiplier)


def noised(
    delta: Adapter, privacy: ClientPrivacy, fraction_bits: int, threshold: int, stream: SecureStream | None = None
) -> np.ndarray:
    """Return a client's clipped and rounded change with its share of the noise.

    Args:
        delta: θ_k − θ, by tensor name.
        privacy: c and z.
        fraction_bits: f; a step of the grid is 2^-f.
        threshold: t; the noise of each coordinate has the variance (z Δ̃)² / t.
        stream: source of all randomness; None for a new one.

    Returns:
        [d] int64 in steps of the grid, the tensors in the order of their names.
    """
    stream = stream or SecureStream()
    scaled = clipped(delta, privacy.clip) * 2.0**fraction_bits
    bound = sensitivity(privacy.clip * 2.0**fraction_bits, len(scaled))
    variance = (privacy.noise_multiplier * bound) ** 2 / threshold
    return round_within(scaled, bound, stream) + discrete_gaussian(variance, len(scaled), stream)


def clipped(delta: Adapter, clip: float) -> np.ndarray:
    """Return a change, [d] float64, scaled down to an L2 norm of `clip` if its norm is larger."""
    values = torch.cat([delta[name].detach().cpu().double().flatten() for name in sorted(delta)]).numpy()
    norm = float(np.linalg.norm(values))
    return values * (clip / norm) if norm > clip else values


def round_within(values: np.ndarray, bound: float, stream: SecureStream) -> np.ndarray:
    """Round each value up or down at random, without bias, and repeat until the L2 norm is within the bound.

    This is the paper's conditional rounding. One attempt succeeds with a probability of at least 1 − e^(−1/2) = 0.39.

    Args:
        values: [d] float64.
        bound: Δ̃, from `sensitivity`.
        stream: source of randomness.

    Returns:
        [d] int64, whose L2 norm is at most `bound`, exactly.
    """
    floor = np.floor(values)
    while True:
        rounded = (floor + (stream.uniform(len(values)) < values - floor)).astype(np.int64)
        if int(np.square(rounded).sum()) <= bound**2:
            return rounded
