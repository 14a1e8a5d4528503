"""Exact samples of the discrete Gaussian: P(y) ∝ exp(−y² / (2σ²)) over the integers.

Rejection after Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy" (arXiv 2004.00010,
Algorithm 3), on arrays. Two things differ. Their discrete Laplace proposal is replaced by one that random bits give
exactly: |y| = u + 2^b v with u uniform below 2^b and v geometric with P(v) = 2^-(v+1), and a random sign (−0 is drawn
again). And Bernoulli(p) compares p with a random number of 53 bits; where those and floating-point arithmetic can't
tell, more bits and more digits are taken until they can. What is left is a cut at |y| ≥ 64 · 2^b > 45 σ, of
probability below e⁻¹⁰⁰⁰.
"""

import decimal
import math
from decimal import Decimal

import numpy as np

from fedcollm.privacy.keystream import SecureStream

_CHUNK = 1 << 17  # candidates at once: their arrays stay in the cache
_BITS = 53
_SLACK = 2.0**-40  # relative; float64 knows p to better than 2⁻⁴⁴
_LARGEST_STEP_BITS = 45


def discrete_gaussian(variance: float, count: int, stream: SecureStream) -> np.ndarray:
    """Independent samples.

    Args:
        variance: σ² > 0, taken as the rational number that it is; σ below 2⁴⁵. The samples' own variance is a little
            smaller, by less than a millionth where σ ≥ 1 (Canonne et al., section 3).
        count: how many.
        stream: where all randomness comes from.

    Returns:
        [count] int64.

    Raises:
        ValueError: σ² is not above zero, or too large.
    """
    if not 0 < variance < 4.0**_LARGEST_STEP_BITS:
        raise ValueError(f"a discrete Gaussian of variance {variance}: it must be above 0 and below 2⁹⁰")
    parts, missing = [], count
    while missing:
        candidates = min(_CHUNK, 3 * missing + 64)  # between 2 and 3 candidates a sample
        parts.append(_accepted(variance, candidates, stream)[:missing])
        missing -= len(parts[-1])
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _accepted(variance: float, count: int, stream: SecureStream) -> np.ndarray:
    """Samples among `count` candidates."""
    step_bits = max(0, round(math.log2(variance) / 2))  # 2^b is within a factor √2 of σ, or 1
    height = _log_height(variance, step_bits)
    words = stream.words(3 * count).reshape(3, count)
    lowest = words[1] & (~words[1] + np.uint64(1))  # the lowest bit that is one; 0 if there is none
    steps = np.frexp(lowest.astype(np.float64))[1].astype(np.int64) - 1  # v: zeros below it; -1 if there is none
    size = (words[0] & np.uint64((1 << step_bits) - 1)).astype(np.int64) + (np.maximum(steps, 0) << step_bits)
    negative = (words[0] >> np.uint64(63)).astype(bool)
    squares = np.square(size.astype(np.float64))
    probability = np.exp(steps * math.log(2.0) - height - squares / (2.0 * variance))
    drawn = words[2] >> np.uint64(64 - _BITS)  # the random number lies in [drawn, drawn + 1) · 2⁻⁵³
    low = drawn * 2.0**-_BITS
    accepted = low + 2.0**-_BITS <= probability * (1 - _SLACK)
    unclear = ~accepted & ((low < probability * (1 + _SLACK)) | (drawn == 0))
    for i in np.flatnonzero(unclear):
        accepted[i] = _below(int(drawn[i]), int(steps[i]), int(size[i]), variance, height, stream)
    accepted &= (steps >= 0) & ~(negative & (size == 0))
    return np.where(negative, -size, size)[accepted]


def _log_height(variance: float, step_bits: int) -> float:
    """A little more than log of the largest ratio of exp(−y² / (2σ²)) to 2^-v, which lies at the start of a step."""
    return max(v * math.log(2.0) - (v << step_bits) ** 2 / (2.0 * variance) for v in range(64)) + 1e-9


def _below(drawn: int, steps: int, size: int, variance: float, height: float, stream: SecureStream) -> bool:
    """Whether a random number whose first 53 bits are known is below exp(v log 2 − height − y² / (2σ²)), exactly."""
    bits = _BITS
    while True:
        with decimal.localcontext(prec=bits):
            exponent = steps * Decimal(2).ln() - Decimal(height) - Decimal(size) ** 2 / (2 * Decimal(variance))
            limit = exponent.exp()
            error = limit.scaleb(10 - bits)  # the exponent is at most five digits long
            unit = Decimal(2) ** -bits
            if (drawn + 1) * unit <= limit - error:
                return True
            if drawn * unit >= limit + error:
                return False
        drawn, bits = drawn << 64 | int(stream.words(1)[0]), bits + 64
