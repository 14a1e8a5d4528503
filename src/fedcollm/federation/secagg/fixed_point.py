"""Adapters and sums as integers modulo 2³², so that masked sums are exact.

A client's weighted update n_k·(θ_k − θ) becomes round(n_k (θ_k − θ) 2^f), one uint32 a parameter. The number of
fraction bits f is the largest for which K such integers can't overflow. What is outside the declared range is an
error, never clipped or wrapped. Counts and metric sums travel as four 16-bit limbs each, and are exact to 2⁻²⁰.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedcollm.errors import UserError
from fedcollm.messages import Adapter, ClientUpdate

_LIMBS, _LIMB_BITS, _STATISTIC_BITS = 4, 16, 20
_LARGEST_STATISTIC = 2.0**40


#: What is summed beside the update, in this order; under privacy the first one only, since who takes part is public.
STATISTICS = ("clients", "examples", "loss", "scored", "score", "seconds_clients", "seconds_evaluation")


def statistics(update: ClientUpdate) -> dict[str, float]:
    """An update's numbers as sums over its examples, or over clients; those that it has."""
    if update.examples is None or update.loss is None:
        return {"clients": 1.0}
    return {
        "clients": 1.0,
        "examples": float(update.examples),
        "loss": update.loss * update.examples,
        "scored": float(update.score is not None),
        "score": update.score.value if update.score else 0.0,
        "seconds_clients": update.seconds.get("clients", 0.0),
        "seconds_evaluation": update.seconds.get("evaluation", 0.0),
    }


def change(update: ClientUpdate, theta: Adapter) -> Adapter:
    """θ_k − θ."""
    return {name: tensor - theta[name] for name, tensor in update.adapter.items()}


class RangeError(UserError):
    """A value lies outside the declared fixed-point range; nothing was sent."""


@dataclass(frozen=True)
class FixedPoint:
    """The encoding that a federation's parties agree on.

    Attributes:
        clients: K, the largest number of vectors in a sum; below 2¹⁶.
        max_weight: the largest weight of one client (its number of examples, or 1).
        value_range: R; every |θ_k − θ| must be at most R.
    """

    clients: int
    max_weight: int
    value_range: float

    def to_wire(self) -> dict[str, float]:
        """Return the encoding as plain values, for what all parties agree on."""
        return {"clients": self.clients, "max_weight": self.max_weight, "value_range": self.value_range}

    @property
    def fraction_bits(self) -> int:
        """F = ⌊log₂ of (2³¹ / K − 1) / (W R)⌋: K (W R 2^f + 1) stays below 2³¹.

        >>> FixedPoint(clients=4, max_weight=512, value_range=1.0).fraction_bits
        19
        """
        return math.floor(math.log2((2**31 / self.clients - 1) / (self.max_weight * self.value_range)))

    def words(self, shapes: Mapping[str, Sequence[int]], statistics: int) -> int:
        """m: length of the encoded vector."""
        return _LIMBS * statistics + sum(math.prod(shape) for shape in shapes.values())

    def encode_update(self, update: ClientUpdate, theta: Adapter, uniform: bool) -> np.ndarray:
        """A client's vector, [m] uint32: its change of θ and its statistics.

        Args:
            update: θ_k, n_k and what is reported beside it.
            theta: θ.
            uniform: weight 1 instead of n_k.

        Raises:
            RangeError: see `encode`.
        """
        weight = 1 if uniform or update.examples is None else update.examples
        return self.encode(change(update, theta), weight, statistics(update))

    def encode(self, delta: Adapter, weight: int, statistics: Mapping[str, float]) -> np.ndarray:
        """A client's vector.

        Args:
            delta: θ_k − θ.
            weight: n_k, or 1.
            statistics: non-negative numbers to be summed, in a fixed order.

        Returns:
            [m] uint32: the statistics' limbs, then the tensors in the order of their names.

        Raises:
            RangeError: names the tensor or statistic, the value and the key to change.
        """
        if not 0 <= weight <= self.max_weight:
            raise RangeError(
                f"{weight} examples, more than the {self.max_weight} that secure aggregation was set up for: raise "
                "federation.secure_aggregation.max_weight at every party, or give fewer examples"
            )
        integers = []
        for name in sorted(delta):
            values = delta[name].detach().cpu().double().flatten()
            largest = float(values.abs().max()) if len(values) else 0.0
            if not largest <= self.value_range:
                raise RangeError(
                    f"{name} changed by {largest:.4g}, outside the fixed-point range of ±{self.value_range:g}: raise "
                    "federation.secure_aggregation.value_range at every party, or lower the learning rate"
                )
            integers.append((values * (weight * 2.0**self.fraction_bits)).round().to(torch.int64).numpy())
        return pack(np.concatenate([np.empty(0, np.int64), *integers]), statistics)

    def decode(
        self, total: np.ndarray, shapes: Mapping[str, Sequence[int]], names: Sequence[str]
    ) -> tuple[Adapter, dict[str, float]]:
        """Sums back as numbers.

        Args:
            total: [m] uint32, a sum of at most K vectors.
            shapes: tensor name to shape.
            names: the statistics' names, in the order in which they were encoded.

        Returns:
            (Σ n_k (θ_k − θ) in float64, sums of the statistics).
        """
        head = total[: _LIMBS * len(names)].reshape(len(names), _LIMBS).astype(object)
        scale = [2 ** (_LIMB_BITS * i) for i in range(_LIMBS)]
        sums = {name: int(sum(row * scale)) / 2**_STATISTIC_BITS for name, row in zip(names, head, strict=True)}
        values = torch.from_numpy(total[_LIMBS * len(names) :].astype(np.uint32).view(np.int32).astype(np.float64))
        values /= 2.0**self.fraction_bits
        parts = values.split([math.prod(shapes[name]) for name in sorted(shapes)])
        return {name: part.reshape(shapes[name]) for name, part in zip(sorted(shapes), parts, strict=True)}, sums


def pack(fixed: np.ndarray, statistics: Mapping[str, float]) -> np.ndarray:
    """A vector as it is masked.

    Args:
        fixed: [d] int64, in steps of the grid.
        statistics: non-negative numbers to be summed, in a fixed order.

    Returns:
        [m] uint32: the statistics' limbs, then `fixed` modulo 2³².
    """
    limbs = [_limbs(name, value) for name, value in statistics.items()]
    return np.concatenate([*limbs, (fixed & 0xFFFFFFFF).astype(np.uint32)])


def _limbs(name: str, value: float) -> np.ndarray:
    """[4] uint32 below 2¹⁶: a non-negative number, lowest limb first."""
    if not 0 <= value < _LARGEST_STATISTIC:
        raise RangeError(f"{name} is {value:g}, and can be summed from 0 to {_LARGEST_STATISTIC:g} only")
    fixed = round(value * 2**_STATISTIC_BITS)
    return np.array([fixed >> _LIMB_BITS * i & 0xFFFF for i in range(_LIMBS)], np.uint32)
