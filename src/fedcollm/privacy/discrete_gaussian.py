"""Exact samples of the discrete Gaussian, P(y) ∝ exp(−y² / (2σ²)) over the integers.

This is the rejection sampling of Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy" (arXiv
2004.00010, Algorithm 3), on arrays, with two differences:

- The proposal is not a discrete Laplace distribution but one that random bits give exactly: |y| = u + 2^b v with u
  uniform in [0, 2^b), v geometric with P(v) = 2^-(v+1), and a random sign (−0 is rejected).
- Bernoulli(p) compares p with a random number of 53 bits. If these bits and floating-point arithmetic can't decide,
  more bits and more digits are used until they can.

The only approximation is that values with |y| ≥ 64 · 2^b > 45 σ never occur; their probability is below e⁻¹⁰⁰⁰.
"""

import decimal
import math
from decimal import Decimal
from typing import cast

import numpy as np
from numpy.typing import NDArray

from fedcollm.privacy.keystream import SecureStream

_CHUNK = 1 << 17  # candidates per batch, so that their arrays fit into the cache
_BITS = 53  # random bits of the first comparison
_SLACK = 2.0**-40  # relative error granted to p, which float64 computes to better than 2⁻⁴⁴
_LARGEST_STEP_BITS = 45


def discrete_gaussian(variance: float, count: int, stream: SecureStream) -> NDArray[np.int64]:
    """Return independent samples.

    Args:
        variance: σ² > 0, used as an exact rational number; σ must be below 2⁴⁵. The variance of the samples is slightly
            smaller, by less than a millionth if σ ≥ 1 (Canonne et al., section 3).
        count: number of samples.
        stream: source of all randomness.

    Returns:
        [count] int64.

    Raises:
        ValueError: σ² is not positive, or too large.
    """
    if not 0 < variance < 4.0**_LARGEST_STEP_BITS:
        raise ValueError(f"a discrete Gaussian of variance {variance}: the variance must be above 0 and below 2⁹⁰")
    parts: list[NDArray[np.int64]] = []
    missing = count
    while missing:
        candidates = min(_CHUNK, 3 * missing + 64)  # a sample takes 2 to 3 candidates
        parts.append(_accepted(variance, candidates, stream)[:missing])
        missing -= len(parts[-1])
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _accepted(variance: float, count: int, stream: SecureStream) -> NDArray[np.int64]:
    """Return the accepted ones of `count` candidates."""
    step_bits = max(0, round(math.log2(variance) / 2))  # 2^b is within a factor √2 of σ, or 1
    height = _log_height(variance, step_bits)
    words = stream.words(3 * count).reshape(3, count)
    lowest = words[1] & (~words[1] + np.uint64(1))  # the lowest set bit, or 0 if no bit is set
    steps = np.frexp(lowest.astype(np.float64))[1].astype(np.int64) - 1  # v, the zeros below it; -1 if no bit is set
    size = (words[0] & np.uint64((1 << step_bits) - 1)).astype(np.int64) + (np.maximum(steps, 0) << step_bits)
    negative = (words[0] >> np.uint64(63)).astype(bool)
    squares = np.square(size.astype(np.float64))
    probability = np.exp(steps * math.log(2.0) - height - squares / (2.0 * variance))
    drawn = words[2] >> np.uint64(64 - _BITS)  # the random number is in [drawn, drawn + 1) · 2⁻⁵³
    low = drawn * 2.0**-_BITS
    accepted = low + 2.0**-_BITS <= probability * (1 - _SLACK)
    unclear = ~accepted & ((low < probability * (1 + _SLACK)) | (drawn == 0))
    for i in np.flatnonzero(unclear):
        accepted[i] = _below(int(drawn[i]), int(steps[i]), int(size[i]), variance, height, stream)
    accepted &= (steps >= 0) & ~(negative & (size == 0))
    return cast("NDArray[np.int64]", np.where(negative, -size, size)[accepted])


def _log_height(variance: float, step_bits: int) -> float:
    """Return a little more than the logarithm of the largest ratio of exp(−y² / (2σ²)) to 2^-v.

    The ratio is largest at the start of a step, where u = 0.
    """
    return max(v * math.log(2.0) - (v << step_bits) ** 2 / (2.0 * variance) for v in range(64)) + 1e-9


def _below(drawn: int, steps: int, size: int, variance: float, height: float, stream: SecureStream) -> bool:
    """Return whether a random number with known first 53 bits is below exp(v log 2 − height − y² / (2σ²)), exactly."""
    bits = _BITS
    while True:
        with decimal.localcontext(prec=bits):
            exponent = steps * Decimal(2).ln() - Decimal(height) - Decimal(size) ** 2 / (2 * Decimal(variance))
            limit = exponent.exp()
            error = limit.scaleb(10 - bits)  # the exponent has at most five digits
            unit = Decimal(2) ** -bits
            if (drawn + 1) * unit <= limit - error:
                return True
            if drawn * unit >= limit + error:
                return False
        drawn, bits = drawn << 64 | int(stream.words(1)[0]), bits + 64
