"""A client's side of client-level privacy: clip, round, add noise; all of it on the grid of secure aggregation.

The distributed discrete Gaussian mechanism of Kairouz, Liu and Steinke (arXiv 2102.06387, Algorithm 1), without its
random rotation: 32 bits leave a grid so fine that no coordinate needs to be flattened. Every client adds a share of
the noise, such that any t clients' shares make up the whole. A single client's share hides little: it is secure
aggregation that keeps the server from seeing less than the sum of t.
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

_TAIL = 15.0  # 12 standard deviations of 3/2 of the noise: 12 √1.5 is 14.7
_ROOM = 1.05  # for what rounding adds to the norm


def private_fixed_point(clients: int, privacy: ClientPrivacy) -> FixedPoint:
    """The encoding whose sums don't overflow: R = 1.05 c (1 + 15 z / K), with clip c and noise multiplier z.

    K R 2^f < 2³¹ then holds K clipped changes, and noise of 12 of its standard deviations: at most 3t/2 clients are in
    a sum, so that these are √1.5 z c. More noise than that has a probability of 2 exp(−72), or 1e-31, a parameter and
    round; it would spoil that parameter, and cost no privacy.

    Args:
        clients: K.
        privacy: c and z.
    """
    return FixedPoint(clients, 1, _ROOM * privacy.clip * (1 + _TAIL * privacy.noise_multiplier / clients))


def sensitivity(norm: float, dimension: int) -> float:
    """Δ̃ = min{c + √d, √(c² + d/4 + √(2 log 1/β) (c + √d/2))} with β = e^(−1/2): the norm after rounding at most.

    Args:
        norm: c, largest L2 norm before rounding, in steps of the grid.
        dimension: d.

    >>> sensitivity(3.0, 4)  # min{5, √(9 + 1 + 3 + 1)}
    3.7416573867739413
    """
    root = math.sqrt(dimension)
    return min(norm + root, math.sqrt(norm**2 + dimension / 4 + norm + root / 2))


def check_grid(encoding: FixedPoint, privacy: ClientPrivacy, clients: int, threshold: int, dimension: int) -> None:
    """Refuse a grid on which the mechanism would not be what the accountant takes it for.

    Args:
        encoding: of `private_fixed_point`.
        privacy: of the clients.
        clients: n, in a sum at most.
        threshold: t.
        dimension: d, parameters of the adapter.

    Raises:
        UserError: rounding adds too much to a change, or the noise is too small, see `privacy.check_sum`.
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
    """A client's clipped change with its share of the noise.

    Args:
        delta: θ_k − θ.
        privacy: c and z.
        fraction_bits: f; a step of the grid is 2^-f.
        threshold: t; each coordinate's noise has the variance (z Δ̃)² / t.
        stream: where all randomness comes from; by default a fresh one.

    Returns:
        [d] int64, in steps of the grid, the tensors in the order of their names.
    """
    stream = stream or SecureStream()
    scaled = clipped(delta, privacy.clip) * 2.0**fraction_bits
    bound = sensitivity(privacy.clip * 2.0**fraction_bits, len(scaled))
    variance = (privacy.noise_multiplier * bound) ** 2 / threshold
    return round_within(scaled, bound, stream) + discrete_gaussian(variance, len(scaled), stream)


def clipped(delta: Adapter, clip: float) -> np.ndarray:
    """[d] float64: the change, scaled down to an L2 norm of `clip` if it is longer."""
    values = torch.cat([delta[name].detach().cpu().double().flatten() for name in sorted(delta)]).numpy()
    norm = float(np.linalg.norm(values))
    return values * (clip / norm) if norm > clip else values


def round_within(values: np.ndarray, bound: float, stream: SecureStream) -> np.ndarray:
    """Round up or down at random, without bias, again and again until the norm is within the bound.

    One trial succeeds with a probability of at least 1 − e^(−1/2) = 0.39 (the paper's conditional rounding).

    Args:
        values: [d] float64.
        bound: Δ̃, of `sensitivity`.
        stream: randomness.

    Returns:
        [d] int64, of an L2 norm of at most `bound`, exactly.
    """
    floor = np.floor(values)
    while True:
        rounded = (floor + (stream.uniform(len(values)) < values - floor)).astype(np.int64)
        if int(np.square(rounded).sum()) <= bound**2:
            return rounded
