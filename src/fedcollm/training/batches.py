"""Batches of a training loop: shuffled, of similar size, and with an even share of labels if asked for."""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from fedcollm.config import TrainingConfig

#: Examples are sorted by size within windows of this many batches: batches need little padding and stay random.
_WINDOW = 8


class Collator(Protocol):
    """Makes batches of examples of similar size; every modality does."""

    def size(self, example: Any) -> int:
        """Return the size of one example, such as its number of tokens."""
        ...

    def collate(self, examples: Sequence[Any]) -> Any:
        """Return one batch."""
        ...


def minibatches(
    modality: Collator, examples: Sequence[Any], batch_size: int, generator: random.Random, even_labels: bool = False
) -> Iterator[Any]:
    """Yield the batches of one shuffled pass; the examples of a batch are of similar size.

    Args:
        modality: gives the size of each example, and collates.
        examples: any number of examples.
        batch_size: number of examples per batch; the remainder forms one smaller batch.
        generator: the only source of randomness.
        even_labels: whether all batches have the same share of labelled examples, up to one example, and so nearly
            the same size.
    """
    yield from map(modality.collate, _members(modality, examples, batch_size, generator, even_labels))


def _members(
    modality: Collator, examples: Sequence[Any], batch_size: int, generator: random.Random, even_labels: bool
) -> Iterator[list[Any]]:
    """Yield the examples of each batch; see `minibatches`."""
    parts = [list(range(len(examples)))]
    if even_labels:
        parts = [[i for i in parts[0] if (examples[i].label is None) == missing] for missing in (False, True)]
    count = math.ceil(len(examples) / batch_size)
    batches: list[list[int]] = [[] for _ in range(count)]  # none if there are no examples
    for part in parts if batches else ():
        generator.shuffle(part)
        ends = [len(part) * i // count for i in range(count + 1)]
        if not even_labels:
            ends = [min(batch_size * i, len(part)) for i in range(count + 1)]
        for first in range(0, count, _WINDOW):
            last = min(first + _WINDOW, count)
            near = iter(sorted(part[ends[first] : ends[last]], key=lambda i: modality.size(examples[i])))
            for i in range(first, last):
                batches[i] += itertools.islice(near, ends[i + 1] - ends[i])
    generator.shuffle(batches)
    for batch in batches:
        yield [examples[i] for i in batch]


def step_count(examples: int, settings: TrainingConfig) -> int:
    """Return the number of optimizer steps in one pass over so many examples.

    >>> step_count(10, TrainingConfig(batch_size=2, gradient_accumulation=2))
    3
    """
    return math.ceil(math.ceil(examples / settings.batch_size) / settings.gradient_accumulation)


def step_batches(
    modality: Collator,
    examples: Sequence[Any],
    settings: TrainingConfig,
    generator: random.Random,
    even_labels: bool = False,
) -> Iterator[list[Any]]:
    """Yield the batches of each optimizer step in one shuffled pass.

    A step has `gradient_accumulation` batches; the last step has those that remain. A batch of more than
    `settings.at_once` examples becomes several smaller ones: a loop that weighs each by its rows gets the same mean.

    Args:
        modality: gives the size of each example, and collates.
        examples: any number of examples.
        settings: gives `batch_size`, `gradient_accumulation` and `at_once`.
        generator: the only source of randomness.
        even_labels: whether all batches have the same share of labelled examples.
    """
    batches, most = _members(modality, examples, settings.batch_size, generator, even_labels), settings.at_once
    while group := list(itertools.islice(batches, settings.gradient_accumulation)):
        parts = [batch[i : i + most] for batch in group for i in range(0, len(batch), most)]
        yield [modality.collate(part) for part in parts]


def like_sized(modality: Collator, examples: Sequence[Any], batch_size: int) -> list[list[int]]:
    """Return batches of the positions of all examples, sorted by the examples' size."""
    order = sorted(range(len(examples)), key=lambda i: modality.size(examples[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
