"""Batches of D_a whose rows carry a weight: how much the model that teaches is trusted on each example."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedcollm.errors import UserError
from fedcollm.modalities.base import Modality

#: The role of a model that is taught to the weight of each example of D_a, in its order; 0: it is not taught there.
Trust = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class TrustedBatch:
    """A batch with the weights of its rows.

    Attributes:
        batch: what the modality's `collate` returned.
        trust: the role of a model that is taught to [P], the weight of each matched row; None if all rows weigh 1.
    """

    batch: Any
    trust: Mapping[str, Tensor] | None = None


class TrustingCollator:
    """Makes batches as a modality does, with the weights of their rows.

    Args:
        modality: makes the batches; the rows of an example stand side by side, in the order of the examples.
        public: D_a.
        trust: the weights of its examples; None if all of them weigh 1.
    """

    def __init__(self, modality: Modality, public: Sequence[Any], trust: Trust | None):
        self._modality, self._trust = modality, trust
        self._places = {id(example): place for place, example in enumerate(public)}

    def size(self, example: Any) -> int:
        """Return the size of one example, as its modality does."""
        return self._modality.size(example)

    def collate(self, examples: Sequence[Any]) -> TrustedBatch:
        """Return one batch.

        Raises:
            UserError: the modality's rows are not those of its examples one by one.
        """
        batch = self._modality.collate(examples)
        if self._trust is None:
            return TrustedBatch(batch)
        counts, places = self._rows(examples, batch), [self._places[id(example)] for example in examples]
        weights = {role: torch.tensor([values[place] for place in places]) for role, values in self._trust.items()}
        return TrustedBatch(batch, {role: one.repeat_interleave(counts) for role, one in weights.items()})

    def _rows(self, examples: Sequence[Any], batch: Any) -> Tensor:
        """Return [B] int64, the number of matched rows of each example."""
        total = self._modality.rows(batch)
        if total == len(examples) and not self._modality.causal_lm:
            return torch.ones(total, dtype=torch.int64)  # a text has a row for each token of its answer
        counts = [self._modality.rows(self._modality.collate([example])) for example in examples]
        if sum(counts) != total:
            raise UserError(
                f"server.distillation.gate weighs the rows of each example, and {type(self._modality).__name__} makes "
                f"{total} rows of {len(examples)} examples that have {sum(counts)} rows one by one. Set "
                "server.distillation.gate: none."
            )
        return torch.tensor(counts)
