"""Adapters and sums as integers modulo 2³², so that masked sums are exact.

A client's weighted update n_k (θ_k − θ) becomes round(n_k (θ_k − θ) 2^f), one uint32 per parameter. The number of
fraction bits f is the largest for which the sum of K such integers can't overflow. A value outside the declared range
is an error; it is never clipped or wrapped. Counts and sums of metrics travel as four 16-bit limbs each, and are exact
to 2⁻²⁰.

With fewer bits per value, a word holds several values, the integers from 0 to 2M, as the digits of a number whose base
is K 2M + 1, so that no sum reaches the next digit. The words are masked, added and opened like any other. A change that
is outside the range is then clipped to it, and the sum says how many values were.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedcollm.errors import UserError
from fedcollm.federation.quantization import WORD, from_words, randomly_rounded, rounding_seed, to_words, word_count
from fedcollm.messages import Adapter, ClientUpdate

_LIMBS, _LIMB_BITS, _STATISTIC_BITS = 4, 16, 20
_LARGEST_STATISTIC = 2.0**40

#: Names of the statistics that are summed with the updates, in their order. Under privacy, only the first one is
#: summed: it is the number of clients, which is public.
STATISTICS = ("clients", "examples", "loss", "scored", "score", "seconds_clients", "seconds_evaluation", "clipped")


def statistics(update: ClientUpdate) -> dict[str, float]:
    """Return an update's statistics, by name, as numbers to be summed over clients.

    An update under privacy has only the first of `STATISTICS`. A main metric counts from 0 to 1.
    """
    if update.examples is None or update.loss is None:
        return {"clients": 1.0}
    return {
        "clients": 1.0,
        "examples": float(update.examples),
        "loss": update.loss * update.examples,
        "scored": float(update.score is not None),
        "score": min(max(update.score.value, 0.0), 1.0) if update.score else 0.0,
        "seconds_clients": update.seconds.get("clients", 0.0),
        "seconds_evaluation": update.seconds.get("evaluation", 0.0),
        "clipped": 0.0,
    }


def change(update: ClientUpdate, theta: Adapter) -> Adapter:
    """Return θ_k − θ by tensor name."""
    return {name: tensor - theta[name] for name, tensor in update.adapter.items()}


class RangeError(UserError):
    """A value lies outside the declared fixed-point range. Nothing was sent."""


def check_range(delta: Adapter, value_range: float) -> None:
    """Check that no value of a change is outside the fixed-point range.

    Raises:
        RangeError: names the tensor, its value, and the key of the configuration to change.
    """
    for name in sorted(delta):
        largest = float(delta[name].detach().abs().max()) if delta[name].numel() else 0.0
        if not largest <= value_range:
            raise RangeError(
                f"{name} changed by {largest:.4g}, outside the fixed-point range of ±{value_range:g}. Raise "
                "federation.secure_aggregation.value_range at every party, or lower the learning rate."
            )


def check_weight(weight: int, max_weight: int) -> None:
    """Check the weight of a client.

    Raises:
        RangeError: it is too large; the message names the key of the configuration to change.
    """
    if not 0 <= weight <= max_weight:
        raise RangeError(
            f"{weight} examples, more than the {max_weight} that secure aggregation was set up for. Raise "
            "federation.secure_aggregation.max_weight at every party, or give fewer examples."
        )


@dataclass(frozen=True)
class FixedPoint:
    """The fixed-point encoding that the parties of a federation agree on.

    Attributes:
        clients: K, the largest number of vectors in a sum; below 2¹⁶.
        max_weight: the largest weight of one client (its number of examples, or 1).
        value_range: R; every |θ_k − θ| must be at most R.
        bits: at most so many bits per value: 32, or fewer, for which values are rounded at random and clipped.
    """

    clients: int
    max_weight: int
    value_range: float
    bits: int = WORD

    def to_wire(self) -> dict[str, float]:
        """Return the encoding as plain values, which enter the digest of what all parties agreed on."""
        values = {"clients": self.clients, "max_weight": self.max_weight, "value_range": self.value_range}
        return values if self.bits == WORD else {**values, "bits": self.bits}

    @property
    def whole(self) -> "FixedPoint":
        """The encoding with all bits of a word for each value, and room for values up to 1, as statistics need it."""
        return self if self.bits == WORD else replace(self, bits=WORD, value_range=max(1.0, self.value_range))

    @property
    def most(self) -> int:
        """The largest integer M that a value becomes, if a word holds several values.

        >>> FixedPoint(clients=4, max_weight=1, value_range=0.5, bits=8).most  # 4 · 2 · 31 < 2⁸
        31
        >>> FixedPoint(clients=4, max_weight=1, value_range=0.5, bits=5).most  # (4 · 2 · 4 + 1)⁶ < 2³²
        4
        """
        count = WORD // self.bits
        room = math.floor(2 ** (WORD / count) + 1e-9)
        return (room - 1) // (2 * self.clients)

    @property
    def base(self) -> int:
        """The base of the digits that a word holds: one more than the largest sum, K 2M.

        >>> FixedPoint(clients=4, max_weight=1, value_range=0.5, bits=4).base  # so that a word holds 10 values
        9
        """
        return 2**WORD if self.bits == WORD else 2 * self.clients * self.most + 1

    @property
    def scale(self) -> float:
        """The number of steps in 1: 2^f, or M / (W R) if a word holds several values."""
        if self.bits == WORD:
            return 2.0**self.fraction_bits
        return self.most / (self.max_weight * self.value_range)

    @property
    def fraction_bits(self) -> int:
        """The number of fraction bits, f = ⌊log₂((2³¹ / K − 1) / (W R))⌋, with which K (W R 2^f + 1) is at most 2³¹.

        W is `max_weight`.

        >>> FixedPoint(clients=4, max_weight=512, value_range=1.0).fraction_bits
        19
        """
        return math.floor(math.log2((2**31 / self.clients - 1) / (self.max_weight * self.value_range)))

    def words(self, shapes: Mapping[str, Sequence[int]], statistics: int) -> int:
        """Return m, the length of an encoded vector.

        Args:
            shapes: tensor name to shape.
            statistics: number of statistics.
        """
        return _LIMBS * statistics + word_count(sum(math.prod(shape) for shape in shapes.values()), self.base)

    def encode_update(self, update: ClientUpdate, theta: Adapter, uniform: bool) -> np.ndarray:
        """Return a client's vector, [m] uint32: its statistics and its change of θ.

        Args:
            update: θ_k, n_k and the statistics that the client reports.
            theta: θ.
            uniform: whether the weight is 1 instead of n_k.

        Raises:
            RangeError: as in `encode`.
        """
        weight = 1 if uniform or update.examples is None else update.examples
        delta, numbers = change(update, theta), statistics(update)
        if "examples" in numbers:
            numbers["clipped"] = float(self.clipped(delta, weight))
        return self.encode(delta, weight, numbers, rounding_seed(update.client, update.round_index))

    def clipped(self, delta: Adapter, weight: int) -> int:
        """Return how many values n_k (θ_k − θ) are clipped to W R; with all bits of a word, none is."""
        if self.bits == WORD:
            return 0
        most = self.max_weight * self.value_range * (1 + 1e-6)  # a value at the edge may exceed it by its rounding
        return sum(int((tensor.double().abs() * weight > most).sum()) for tensor in delta.values())

    def encode(self, delta: Adapter, weight: int, statistics: Mapping[str, float], seed: int = 0) -> np.ndarray:
        """Return a client's vector.

        Args:
            delta: θ_k − θ, by tensor name.
            weight: n_k, or 1.
            statistics: name to a non-negative number to be summed, in a fixed order.
            seed: seed of the rounding, if a word holds several values.

        Returns:
            [m] uint32: the limbs of the statistics, then the tensors in the order of their names.

        Raises:
            RangeError: a tensor, a statistic or the weight is outside its range. The message names the value and the
                key of the configuration to change. With fewer than 32 bits, only what is not finite is outside.
        """
        check_weight(weight, self.max_weight)
        check_range(delta, self.value_range if self.bits == WORD else sys.float_info.max)
        scale, none = weight * self.scale, torch.empty(0, dtype=torch.float64)
        values = torch.cat([none, *(delta[name].detach().cpu().double().flatten() for name in sorted(delta))])
        if self.bits == WORD:
            return pack((values * scale).round().to(torch.int64).numpy(), statistics)
        integers = randomly_rounded((values * scale).clamp(-self.most, self.most), seed).numpy() + self.most
        return np.concatenate([pack(np.empty(0, np.int64), statistics), to_words(integers, self.base)])

    def decode(
        self, total: np.ndarray, shapes: Mapping[str, Sequence[int]], names: Sequence[str]
    ) -> tuple[Adapter, dict[str, float]]:
        """Return the numbers that a sum of vectors stands for.

        Args:
            total: [m] uint32, a sum of at most K vectors.
            shapes: tensor name to shape.
            names: names of the statistics, in the order in which they were encoded; the first one is `clients`.

        Returns:
            (Σ n_k (θ_k − θ) by tensor name, in float64; sums of the statistics by name).
        """
        head = total[: _LIMBS * len(names)].reshape(len(names), _LIMBS).astype(object)
        scale = [2 ** (_LIMB_BITS * i) for i in range(_LIMBS)]
        sums = {name: int(sum(row * scale)) / 2**_STATISTIC_BITS for name, row in zip(names, head, strict=True)}
        sizes = [math.prod(shapes[name]) for name in sorted(shapes)]
        words = total[_LIMBS * len(names) :].astype(np.uint32)
        if self.bits == WORD:
            signed = words.view(np.int32)
        else:
            digits = from_words(words, self.base, sum(sizes)).astype(np.float64)
            signed = digits - self.most * sums["clients"]  # in floats, since a hostile client can claim any number
        parts = torch.split(torch.as_tensor(signed.astype(np.float64)) / self.scale, sizes)
        return {name: part.reshape(shapes[name]) for name, part in zip(sorted(shapes), parts, strict=True)}, sums


def pack(fixed: np.ndarray, statistics: Mapping[str, float]) -> np.ndarray:
    """Return a vector that is ready to be masked.

    Args:
        fixed: [d] int64, the change of θ in steps of the fixed-point grid.
        statistics: name to a non-negative number to be summed, in a fixed order.

    Returns:
        [m] uint32: the limbs of the statistics, then `fixed` modulo 2³².
    """
    limbs = [_limbs(name, value) for name, value in statistics.items()]
    return np.concatenate([*limbs, (fixed & 0xFFFFFFFF).astype(np.uint32)])


def _limbs(name: str, value: float) -> np.ndarray:
    """Return a statistic as four limbs, lowest first: [4] uint32, each below 2¹⁶.

    Raises:
        RangeError: the statistic is negative, or too large.
    """
    if not 0 <= value < _LARGEST_STATISTIC:
        raise RangeError(f"{name} is {value:g}, and can be summed only from 0 to below {_LARGEST_STATISTIC:g}")
    fixed = round(value * 2**_STATISTIC_BITS)
    return np.array([fixed >> _LIMB_BITS * i & 0xFFFF for i in range(_LIMBS)], np.uint32)
