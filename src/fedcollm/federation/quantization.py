"""Changes of an adapter as small integers: random rounding that is right on average, and several integers in a word.

A value is rounded up or down at random, so that its expectation is the value (QSGD, Alistarh et al., arXiv 1610.02132),
and the errors of many clients cancel. The randomness is that of the client and the round, so that a client that tries
again sends the same bytes, and needs no memory of its earlier errors.
"""

import math

import numpy as np
import torch
from torch import Tensor

from fedcollm.messages import Adapter
from fedcollm.seeding import derive_seed

#: Bits of a word.
WORD = 32

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


def word_count(values: int, bits: int) -> int:
    """Return how many words hold so many values of some bits.

    >>> word_count(9, 8), word_count(9, 32)
    (3, 9)
    """
    return math.ceil(values * bits / WORD)


def to_words(values: np.ndarray, bits: int) -> np.ndarray:
    """Return words that hold several values each, the first in the lowest bits: [⌈d · bits / 32⌉] uint32.

    Words can be added as long as no sum of values reaches 2^bits. The words of sums are then the sums of words.

    >>> to_words(np.array([1, 2, 3, 4, 5]), 8).tolist()
    [67305985, 5]

    Args:
        values: [d] integers from 0 to 2^bits − 1.
        bits: 4, 8 or 16.
    """
    lanes = WORD // bits
    padded = np.zeros(lanes * word_count(len(values), bits), np.uint32)
    padded[: len(values)] = values
    shifts = np.arange(0, WORD, bits, dtype=np.uint32)
    return np.bitwise_or.reduce(padded.reshape(-1, lanes) << shifts, axis=1)


def from_words(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the first values that words hold, [count] int64: the inverse of `to_words`.

    >>> from_words(np.array([67305985, 5], np.uint32), 8, 5).tolist()
    [1, 2, 3, 4, 5]
    """
    shifts = np.arange(0, WORD, bits, dtype=np.uint32)
    lanes = (words.astype(np.uint32)[:, None] >> shifts) & np.uint32(2**bits - 1)
    return lanes.reshape(-1)[:count].astype(np.int64)


def quantized(adapter: Adapter, theta: Adapter, bits: int, seed: int) -> Adapter:
    """Return the change of an adapter in a few bits per value: [m] int32 words, and a float32 scale for each tensor.

    The values of a tensor are multiples of its scale, from −M to M with M = 2^(bits − 1) − 1; the largest one is M.

    Args:
        adapter: θ_k.
        theta: θ, with the same names and shapes.
        bits: 4 or 8.
        seed: seed of the rounding.
    """
    most, parts, scales = 2 ** (bits - 1) - 1, list[Tensor](), list[float]()
    for name in sorted(theta):
        change = (adapter[name].detach().cpu().double() - theta[name].detach().cpu().double()).flatten()
        scale = float(torch.tensor(float(change.abs().max()) / most if change.numel() else 0.0, dtype=torch.float32))
        scales.append(scale)
        parts.append((change / scale).clamp(-most, most) if scale > 0 else torch.zeros_like(change))
    rounded = randomly_rounded(torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64), seed)
    words = to_words(rounded.numpy() + most, bits).view(np.int32)
    return {VALUES: torch.from_numpy(words.copy()), SCALES: torch.tensor(scales, dtype=torch.float32)}  # pyright: ignore[reportUnknownMemberType]


def quantized_form(theta: Adapter, bits: int) -> Adapter:
    """Return tensors of the shapes and dtypes of what `quantized` returns; their values mean nothing."""
    words = word_count(sum(tensor.numel() for tensor in theta.values()), bits)
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
    most, sizes = 2 ** (bits - 1) - 1, [theta[name].numel() for name in sorted(theta)]
    words = upload[VALUES].cpu().numpy().view(np.uint32)
    values = torch.from_numpy(from_words(words, bits, sum(sizes)) - most).double()  # pyright: ignore[reportUnknownMemberType]
    adapter: Adapter = {}
    for name, part, scale in zip(sorted(theta), torch.split(values, sizes), upload[SCALES].double(), strict=True):
        start = theta[name]
        adapter[name] = (start.double() + (part * scale).reshape(start.shape).to(start.device)).to(start.dtype)
    return adapter
