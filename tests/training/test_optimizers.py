"""Schedules, accumulation and the stream of steps, by hand on one parameter."""

import math
import random
from types import SimpleNamespace

import pytest
import torch
from tests import parties
from torch import nn

from fedcollm import metrics
from fedcollm.config import ClientConfig, TrainingConfig
from fedcollm.modalities.base import UNLABELLED, Modality, Rows
from fedcollm.training import optimizers
from fedcollm.training.batches import minibatches, step_batches
from fedcollm.training.distillation import ModelPair
from fedcollm.training.optimizers import Stepper, adamw, clip


class One(nn.Module):
    """Two logits: weight times the input, and 0."""

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x):
        return torch.stack([self.weight * x, torch.zeros_like(x)], dim=-1)


class Numbers(Modality):
    """An example is a number and its class."""

    name = "numbers"

    def load_model(self, section, role, device, seed):
        return One()

    def size(self, example):
        return 1

    def collate(self, examples):
        values, classes = zip(*examples, strict=True)
        return SimpleNamespace(x=torch.tensor(values), y=torch.tensor(classes))

    def logits(self, model, batch):
        return model(batch.x)

    def targets(self, batch):
        return batch.y

    def score(self, model, examples):
        raise NotImplementedError


EXAMPLES = [(math.log(3), 0), (0.5, 1), (2.0, 0), (-1.0, 1), (0.25, UNLABELLED)]


def rates(steps: int, **settings) -> list[float]:
    """The learning rate of each step."""
    model, seen = One(), []
    stepper = Stepper({"model": model}, TrainingConfig(learning_rate=0.8, **settings), steps, "here")
    with metrics.listening(lambda step: seen.append(step.learning_rate)):
        for _ in range(steps):
            model.weight.grad = torch.tensor(1.0)
            stepper.step({}, 1)
    return seen


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.8, 0.8, 0.8, 0.8]),
        ({"warmup_ratio": 0.5}, [0.0, 0.4, 0.8, 0.8]),
        ({"warmup_ratio": 0.3}, [0.0, 0.8, 0.8, 0.8]),  # 1.2 steps, rounded down
        ({"warmup_ratio": 0.2}, [0.8, 0.8, 0.8, 0.8]),  # less than a step: a round of few steps trains all the same
        ({"schedule": "linear"}, [0.8, 0.6, 0.4, 0.2]),
        ({"schedule": "linear", "warmup_ratio": 0.5}, [0.0, 0.4, 0.8, 0.4]),
        # 0.8 (1 + cos πt) / 2 at t = 0, 1/4, 1/2, 3/4; after two steps of warm-up at t = 0, 1/2
        ({"schedule": "cosine"}, [0.8, 0.6828427, 0.4, 0.1171573]),
        ({"schedule": "cosine", "warmup_ratio": 0.5}, [0.0, 0.4, 0.8, 0.4]),
    ],
)
def test_schedule_by_hand(settings, expected):
    assert rates(4, **settings) == pytest.approx(expected)


def test_keys_reach_adamw():
    (group,) = adamw(One(), TrainingConfig(learning_rate=0.5, weight_decay=0.25, betas=(0.5, 0.75))).param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.5, 0.25, (0.5, 0.75))


def test_weight_decay_by_hand():
    model = One(4.0)
    stepper = Stepper({"model": model}, TrainingConfig(learning_rate=0.1, weight_decay=0.5), 1, "here")
    model.weight.grad = torch.tensor(1.0)
    stepper.step({}, 1)
    assert model.weight.item() == pytest.approx(4.0 * (1 - 0.1 * 0.5) - 0.1)  # the first step of Adam is its rate


def sgd(monkeypatch) -> None:
    monkeypatch.setattr(optimizers, "adamw", lambda m, settings: torch.optim.SGD([m.weight], settings.learning_rate))


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_accumulated_batches_make_the_step_of_one_batch(monkeypatch, batch_size):
    sgd(monkeypatch)
    ends, losses = [], []
    for size, accumulation, micro in ((5, 1, None), (batch_size, 5, None), (5, 1, batch_size), (5, 1, 9)):
        model = One()
        settings = {"batch_size": size, "gradient_accumulation": accumulation, "learning_rate": 1.0, "epochs": 2}
        losses.append(parties.fit(Numbers(), model, EXAMPLES, seed=0, micro_batch_size=micro, **settings))
        ends.append(model.weight.item())
    assert ends[1:] == pytest.approx([ends[0]] * 3, abs=1e-6)
    assert losses[1:] == pytest.approx([losses[0]] * 3, abs=1e-6)
    assert abs(ends[0] - 1) > 0.01


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_accumulated_batches_of_distillation_count_unlabelled_rows_in_the_kl_too(monkeypatch, batch_size):
    sgd(monkeypatch)
    ends, losses = [], []
    for size, accumulation, micro in ((5, 1, None), (batch_size, 5, None), (5, 1, batch_size)):
        slm, llm = One(), One(-0.5)
        settings = {"batch_size": size, "gradient_accumulation": accumulation, "learning_rate": 1.0, "weight": 2.0}
        losses.append(parties.distil(Numbers(), slm, llm, EXAMPLES, seed=0, micro_batch_size=micro, **settings))
        ends.append((slm.weight.item(), llm.weight.item()))
    for end, loss in zip(ends[1:], losses[1:], strict=True):
        assert end == pytest.approx(ends[0], abs=1e-6)
        assert loss == pytest.approx(losses[0], abs=1e-6)


def test_parts_of_a_batch_are_no_larger_than_memory_allows():
    examples = [(float(i), 0) for i in range(11)]
    settings = ClientConfig(batch_size=5, gradient_accumulation=2, micro_batch_size=2)
    steps = [
        [part.x.tolist() for part in step] for step in step_batches(Numbers(), examples, settings, random.Random(0))
    ]
    whole = [part.x.tolist() for part in minibatches(Numbers(), examples, 5, random.Random(0))]
    assert [x for step in steps for part in step for x in part] == [x for batch in whole for x in batch]
    assert max(len(part) for step in steps for part in step) == 2
    assert [len(step) for step in steps] == [sum(-(-len(b) // 2) for b in group) for group in (whole[:2], whole[2:])]
    assert ClientConfig(batch_size=5, micro_batch_size=8).at_once == 5


def test_accumulation_takes_fewer_steps():
    seen = []
    with metrics.listening(seen.append):
        parties.fit(Numbers(), One(), EXAMPLES, seed=0, batch_size=1, gradient_accumulation=2, epochs=2)
    assert [(step.index, step.total) for step in seen] == [(i, 6) for i in range(1, 7)]
    assert [step.rows for step in seen[:3]] in ([2, 1, 1], [1, 2, 1], [2, 2, 0])  # four labelled rows


def test_stream_tells_every_step_of_both_models():
    seen = []
    with metrics.listening(seen.append):
        parties.distil(Numbers(), One(), One(-0.5), EXAMPLES[:2], seed=0, batch_size=2, learning_rate=0.5)
    (step,) = seen
    told = step.to_json()
    assert (told["where"], told["step"], told["steps"]) == ("distillation, round 1", 1, 1)
    assert told["losses"].keys() == {"slm", "llm", "kl"}
    assert told["gradient_norms"].keys() == {"slm", "llm"}
    assert (told["learning_rate"], told["rows"]) == (0.5, 2)
    assert told["rows_per_second"] > 0


def test_nothing_is_measured_where_nobody_listens():
    model = One()
    model.weight.grad = torch.tensor(3.0)
    assert clip(model, None) is None
    with metrics.listening(lambda step: None):
        assert clip(model, None) == 3.0
    assert clip(model, 1.0) == 3.0
    assert model.weight.grad.item() == pytest.approx(1.0, abs=1e-5)


def test_listener_changes_no_bit():
    ends = []
    for listener in (None, lambda step: step.to_json()):
        slm, llm = One(), One(-0.5)
        if listener is None:
            parties.distil(Numbers(), slm, llm, EXAMPLES, seed=0, batch_size=2)
        else:
            with metrics.listening(listener):
                parties.distil(Numbers(), slm, llm, EXAMPLES, seed=0, batch_size=2)
        ends.append((slm.weight.item(), llm.weight.item()))
    assert ends[0] == ends[1]


def test_align_of_a_pair_is_asked_for_rows():
    batch = Numbers().collate(EXAMPLES)
    rows = Numbers().align(batch, torch.zeros(5, 2), torch.ones(5, 2))
    assert isinstance(rows, Rows)
    assert Numbers().rows(batch) == len(rows.slm) == 5
    assert ModelPair(Numbers(), One(), None).models().keys() == {"slm"}
