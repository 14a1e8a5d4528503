"""Changes of an adapter as small integers: random rounding that is right on average, and several integers in a word.

A client's value is rounded up or down at random, so that its expectation is the value (QSGD, Alistarh et al., arXiv
1610.02132), and the errors of many clients cancel. The randomness is that of the client and the round, so that a client
that tries again sends the same bytes, and needs no memory of its earlier errors. What the server sends has one error
for all, so it is rounded to the nearest integer, which is a fourth of the error or less.
"""

import math

import numpy as np
import torch
from torch import Tensor

from fedcollm.messages import Adapter
from fedcollm.seeding import derive_seed

#: Bits of a word.
WORD = 32

#: Name of each form in few bits to the number of bits.
BITS = {"int8": 8, "int4": 4, "int3": 3}

#: Names of the two tensors of a quantized change; no tensor of an adapter is called so.
VALUES, SCALES = "quantized values", "quantized scales"


def rounding_seed(client: str, round_index: int) -> int:
    """Return the seed of a client's rounding in a round, which need not be secret."""
    return derive_seed(0, "rounding", client, round_index)


def randomly_rounded(values: Tensor, seed: int) -> Tensor:
    """Return values, [d] float64, rounded up or down to [d] int64 at random, so that the mean is the value.

    >>> randomly_rounded(torch.tensor([2.0, -3.0, 0.0], dtype=torch.float64), 0)
    tensor([ 2, -3,  0])
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.floor(values + torch.rand(values.shape, generator=generator, dtype=torch.float64)).to(torch.int64)


def lanes(base: int) -> int:
    """Return how many digits of a base a word holds: the most for which base^lanes is at most 2³².

    >>> [lanes(base) for base in (2**8, 15, 9, 7, 3)]
    [4, 8, 10, 11, 20]
    """
    return next(count for count in range(WORD, 0, -1) if base**count <= 2**WORD)


def word_count(values: int, base: int) -> int:
    """Return how many words hold so many digits of a base.

    >>> word_count(9, 2**8), word_count(9, 2**32)
    (3, 9)
    """
    return -(-values // lanes(base))


def to_words(values: np.ndarray, base: int) -> np.ndarray:
    """Return words that hold several values each, as the digits of a number, the lowest first: [m] uint32.

    Words can be added as long as no sum of values reaches the base. The words of sums are then the sums of words.

    >>> to_words(np.array([1, 2, 3, 4, 5]), 2**8).tolist()
    [67305985, 5]

    Args:
        values: [d] integers from 0 to base − 1.
        base: from 2 to 2³².
    """
    digits = np.zeros((word_count(len(values), base), lanes(base)), np.uint32)
    digits.reshape(-1)[: len(values)] = values
    powers = np.array([base**i for i in range(lanes(base))], np.uint32)
    return (digits * powers).sum(axis=1, dtype=np.uint32)


def from_words(words: np.ndarray, base: int, count: int) -> np.ndarray:
    """Return the first values that words hold, [count] int64: the inverse of `to_words`.

    >>> from_words(np.array([67305985, 5], np.uint32), 2**8, 5).tolist()
    [1, 2, 3, 4, 5]
    """
    rest, digits = words.astype(np.uint64), np.empty((len(words), lanes(base)), np.int64)
    for lane in range(lanes(base)):
        rest, digits[:, lane] = np.divmod(rest, np.uint64(base))
    return digits.reshape(-1)[:count]


def most_of(bits: int) -> int:
    """Return the largest integer M that a value becomes in so many bits; the others are −M to M.

    In 4 bits it is not 7 but 5, so that a word holds 9 values instead of 8.

    >>> [most_of(bits) for bits in (8, 4, 3)]
    [127, 5, 3]
    """
    return {8: 127, 4: 5, 3: 3}[bits]


#: Shares of a tensor's largest value that the largest integer may stand for; larger values are then cut to it.
_SHARES = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3)


def _nearest(change: Tensor, most: int) -> tuple[Tensor, float]:
    """Return the nearest integers from −M to M, [d] int64, and their scale, which has the least squared error."""
    best, largest = (torch.zeros_like(change, dtype=torch.int64), 0.0), _largest(change)
    least = math.inf
    for share in _SHARES:
        scale = float(torch.tensor(share * largest / most, dtype=torch.float32))
        if scale == 0:
            break
        integers = (change / scale).round().clamp(-most, most)
        error = float((change - integers * scale).square().sum())
        if error < least:
            best, least = (integers.to(torch.int64), scale), error
    return best


def _random(change: Tensor, most: int, seed: int) -> tuple[Tensor, float]:
    """Return integers from −M to M, [d] int64, rounded at random, and their scale, with which the largest one is M."""
    scale = float(torch.tensor(_largest(change) / most, dtype=torch.float32))
    scaled = (change / scale).clamp(-most, most) if scale > 0 else torch.zeros_like(change)
    return randomly_rounded(scaled, seed), scale


def _largest(change: Tensor) -> float:
    return float(change.abs().max()) if change.numel() else 0.0


def quantized(adapter: Adapter, theta: Adapter, bits: int, seed: int | None) -> Adapter:
    """Return the change of an adapter in a few bits per value: [m] int32 words, and a float32 scale for each tensor.

    The values of a tensor are multiples of its scale, from −M to M; see `most_of`. A word holds 4 of them in 8 bits, 9
    in 4 and 11 in 3. Rounded at random, the largest one is M; rounded to the nearest, the scale is that of the least
    squared error.

    Args:
        adapter: θ_k.
        theta: θ, with the same names and shapes.
        bits: 8, 4 or 3.
        seed: seed of the rounding; None to round to the nearest.
    """
    most, parts, scales = most_of(bits), [torch.empty(0, dtype=torch.int64)], list[float]()
    for i, name in enumerate(sorted(theta)):
        change = (adapter[name].detach().cpu().double() - theta[name].detach().cpu().double()).flatten()
        integers, scale = _nearest(change, most) if seed is None else _random(change, most, derive_seed(seed, i))
        parts.append(integers)
        scales.append(scale)
    words = to_words(torch.cat(parts).numpy() + most, 2 * most + 1).view(np.int32)
    return {VALUES: torch.from_numpy(words.copy()), SCALES: torch.tensor(scales, dtype=torch.float32)}  # pyright: ignore[reportUnknownMemberType]


def quantized_form(theta: Adapter, bits: int) -> Adapter:
    """Return tensors of the shapes and dtypes of what `quantized` returns; their values mean nothing."""
    words = word_count(sum(tensor.numel() for tensor in theta.values()), 2 * most_of(bits) + 1)
    return {
        VALUES: torch.empty(words, dtype=torch.int32, device="meta"),
        SCALES: torch.empty(len(theta), dtype=torch.float32, device="meta"),
    }


def restored(upload: Adapter, theta: Adapter, bits: int) -> Adapter:
    """Return the adapter that `quantized` made an upload of, in θ's dtypes, up to rounding.

    Args:
        upload: of the form that `quantized_form` returns.
        theta: θ.
        bits: as for `quantized`.
    """
    most, sizes = most_of(bits), [theta[name].numel() for name in sorted(theta)]
    words = upload[VALUES].cpu().numpy().view(np.uint32)
    values = torch.from_numpy(from_words(words, 2 * most + 1, sum(sizes)) - most).double()  # pyright: ignore[reportUnknownMemberType]
    adapter: Adapter = {}
    for name, part, scale in zip(sorted(theta), torch.split(values, sizes), upload[SCALES].double(), strict=True):
        start = theta[name]
        adapter[name] = (start.double() + (part * scale).reshape(start.shape).to(start.device)).to(start.dtype)
    return adapter
