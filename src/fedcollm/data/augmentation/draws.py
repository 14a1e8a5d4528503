"""Which augmentations an example gets in an epoch: drawn from its identity, never from the order of calls."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fedcollm.seeding import derive_seed


@dataclass(frozen=True)
class Draws:
    """The augmentations of one epoch of one client in one round.

    Attributes:
        kinds: name to probability.
        strength: how much an example is changed, as a multiple of the usual amount.
        seed: seed of the client's round.
        epoch: number of the epoch within the round, starting at 0.
    """

    kinds: Mapping[str, float]
    strength: float
    seed: int
    epoch: int

    def of(self, example: str, names: Mapping[str, object]) -> Iterator[tuple[str, random.Random]]:
        """Yield the augmentations that an example gets, each with its own source of randomness.

        What one augmentation draws does not depend on which others are on.

        Args:
            example: the content of the example, or a digest of it. An id would not do: a client that reads its own file
                numbers its examples anew.
            names: the names of the modality's table, in whose order augmentations are applied.
        """
        for name in names:
            if probability := self.kinds.get(name, 0.0):
                draw = random.Random(derive_seed(self.seed, "augmentation", name, self.epoch, example))
                if draw.random() < probability:
                    yield name, draw
