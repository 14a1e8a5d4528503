"""Batches: every example once, of similar size, in an order that depends on the generator alone."""

import math
import random
from dataclasses import dataclass

import pytest
import torch

from fedcollm.config import TrainingConfig
from fedcollm.config.baselines import changed
from fedcollm.runs.runner import run
from fedcollm.training.batches import minibatches, step_count


class Sizes:
    """A task whose examples are (id, size) and whose batches are lists of them."""

    def size(self, example):
        return example[1]

    def collate(self, examples):
        return list(examples)


@pytest.mark.parametrize(("examples", "batches"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_step_count_rounds_up(examples, batches):
    assert step_count(examples, TrainingConfig(batch_size=4)) == batches


@pytest.mark.parametrize("count", [0, 1, 4, 7, 64, 101])
@pytest.mark.parametrize("batch_size", [1, 4, 200])
def test_minibatches_cover_every_example_exactly_once(count, batch_size):
    examples = [(i, i % 5) for i in range(count)]
    batches = list(minibatches(Sizes(), examples, batch_size, random.Random(0)))
    assert sorted(example for batch in batches for example in batch) == examples
    assert len(batches) == math.ceil(count / batch_size)
    assert all(1 <= len(batch) <= batch_size for batch in batches)


def test_minibatches_group_examples_of_like_size():
    # 16 examples of sizes 0, 7, 14, 5, ... in batches of 2 fill one window: each batch is a pair of neighbours in size
    examples = [(i, 7 * i % 16) for i in range(16)]
    batches = list(minibatches(Sizes(), examples, 2, random.Random(0)))
    assert sorted([size for _, size in batch] for batch in batches) == [[2 * i, 2 * i + 1] for i in range(8)]


def test_minibatches_come_in_no_order_of_size():
    batches = list(minibatches(Sizes(), [(i, i) for i in range(16)], 2, random.Random(0)))
    assert batches != sorted(batches)


def test_minibatches_depend_on_the_generator_alone():
    examples = [(i, i % 3) for i in range(40)]

    def pass_with(seed):
        return list(minibatches(Sizes(), examples, 4, random.Random(seed)))

    first = pass_with(1)
    random.seed(5), torch.manual_seed(5)
    assert pass_with(1) == first
    assert pass_with(2) != first


def test_two_passes_of_one_generator_differ():
    examples, generator = [(i, 1) for i in range(40)], random.Random(0)
    assert list(minibatches(Sizes(), examples, 4, generator)) != list(minibatches(Sizes(), examples, 4, generator))


# --- an even share of labels ---


@dataclass(frozen=True)
class Mixed:
    """An example that has a label or none."""

    number: int
    label: str | None


class Equal(Sizes):
    def size(self, example):
        return example.number % 7


def mixed(labelled: int, unlabelled: int) -> list[Mixed]:
    return [Mixed(i, "x" if i < labelled else None) for i in range(labelled + unlabelled)]


@pytest.mark.parametrize(("labelled", "unlabelled"), [(16, 32), (10, 39), (3, 45), (48, 0), (0, 48), (1, 0)])
def test_batches_have_an_even_share_of_labels_and_every_example_once(labelled, unlabelled):
    examples = mixed(labelled, unlabelled)
    batches = list(minibatches(Equal(), examples, 6, random.Random(0), even_labels=True))
    assert sorted(e.number for batch in batches for e in batch) == list(range(len(examples)))
    assert len(batches) == math.ceil(len(examples) / 6)
    counts = [sum(e.label is not None for e in batch) for batch in batches]
    assert max(counts) - min(counts) <= 1
    assert max(map(len, batches)) - min(map(len, batches)) <= 2


def test_without_it_some_batches_have_hardly_any_label():
    counts = [
        sum(e.label is not None for e in batch) for batch in minibatches(Equal(), mixed(16, 32), 6, random.Random(0))
    ]
    assert max(counts) - min(counts) > 1


def test_a_run_with_even_labels_learns_something_else(tiny_config, tmp_path):
    config = changed(tiny_config, {"task.public_size": 32, "task.unlabelled_size": 48})
    one = run(changed(config, {"server.even_labels": True}), tmp_path / "one")
    other = run(config, tmp_path / "other")
    assert one.records[1].losses != other.records[1].losses
