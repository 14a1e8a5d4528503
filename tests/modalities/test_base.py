"""What a modality gets for nothing: a linear model on pairs of numbers, by hand."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from fedcollm.config import ModelConfig, StatisticsConfig
from fedcollm.errors import UserError
from fedcollm.messages import Score
from fedcollm.modalities.base import UNLABELLED, Modality, Rows, cross_entropy, matched, outputs
from fedcollm.modalities.exhibits import Answer, Exhibit


@dataclass(frozen=True)
class Point:
    """Two numbers and the class that they belong to."""

    id: str
    x: tuple[float, float]
    label: str | None = None


class Points(Modality):
    """The smallest modality: its model is a matrix."""

    name = "points"

    def load_model(self, section, role, device, seed):
        return nn.Linear(2, 2, bias=False, device=device)

    def collate(self, examples):
        return torch.tensor([e.x for e in examples]), torch.tensor([int(e.label or UNLABELLED) for e in examples])

    def logits(self, model, batch):
        return model(batch[0])

    def targets(self, batch):
        return batch[1]

    def score(self, model, examples):
        batch = self.collate(examples)
        return Score({"acc": float((self.logits(model, batch).argmax(-1) == batch[1]).sum())}, len(examples))


POINTS = Points()
EXAMPLES = [Point("a", (0.0, math.log(3)), "1"), Point("b", (0.0, 0.0)), Point("c", (math.log(3), 0.0), "1")]


@pytest.fixture
def model() -> nn.Linear:
    """The logits are the numbers themselves."""
    linear = POINTS.load_model(ModelConfig(), "slm", torch.device("cpu"), 0)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(2))
    return linear


def test_loss_is_the_mean_over_labelled_rows(model):
    batch = POINTS.collate(EXAMPLES)
    # probabilities of class 1: 3/4, unlabelled, 1/4
    loss = POINTS.loss(POINTS.logits(model, batch), batch)
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, abs=1e-6)
    assert POINTS.labelled(batch) == 2


def test_loss_of_nothing_labelled_is_zero_with_a_zero_gradient(model):
    batch = POINTS.collate(EXAMPLES[1:2])
    loss = POINTS.loss(POINTS.logits(model, batch), batch)
    loss.backward()
    assert loss.item() == 0.0
    assert model.weight.grad.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert POINTS.labelled(batch) == 0


def test_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, 0.0], [math.log(7), 0.0]])
    assert cross_entropy(logits, torch.tensor([1, 0])).item() == pytest.approx((math.log(2) + math.log(8 / 7)) / 2)


def test_rows_are_those_of_both_models_as_they_are(model):
    batch = POINTS.collate(EXAMPLES)
    one, other = POINTS.logits(model, batch), torch.zeros(3, 2)
    rows = POINTS.align(batch, one, other)
    assert POINTS.rows(batch) == 3
    assert rows.slm is one
    assert rows.llm is other
    assert rows.slm_targets.tolist() == rows.llm_targets.tolist() == [1, UNLABELLED, 1]


def test_both_roles_share_one_modality_and_one_batch():
    batch = POINTS.collate(EXAMPLES)
    assert POINTS.of("slm") is POINTS.of("llm") is POINTS
    assert POINTS.part(batch, "slm") is POINTS.part(batch, "llm") is batch


def test_examples_are_of_one_size_and_footprint_follows_it():
    assert POINTS.size(EXAMPLES[0]) == 1
    assert POINTS.footprint(EXAMPLES[0], None) == POINTS.footprint(None, None, scoring=True) == (1, 1)


def test_outline_is_the_network_without_weights():
    network = POINTS.outline(ModelConfig())
    assert network.weight.is_meta
    assert network.weight.shape == (2, 2)


def test_base_counts_as_pretrained_and_is_no_language_model():
    assert POINTS.is_pretrained(ModelConfig())
    assert not POINTS.causal_lm
    assert POINTS.metric == "accuracy"
    assert POINTS.to_wire() == {"name": "points", "metric": "accuracy", "options": {}}
    assert (POINTS.facts(), POINTS.notes()) == ({}, [])


def test_exhibit_is_the_label_and_answers_are_those_of_the_score():
    assert POINTS.exhibit(EXAMPLES[0]) == Exhibit("a", truth="1")
    assert POINTS.exhibit(replace(EXAMPLES[0], label=None)) == Exhibit("a")
    scored = Points()
    scored.score = lambda model, examples: scores[examples[0].id]
    scores = {
        "a": Score({"acc": 0.0}, 1, {("1", "0"): 1}, {"a": 0.0}),
        "b": Score({"acc": 1.0}, 1, {}, {"b": 1.0}),
        "c": Score({"acc": 0.5}, 1),
    }
    examples = [replace(EXAMPLES[0], id=name) for name in "abc"]
    assert scored.answers(torch.nn.Identity(), examples) == [Answer("0", False), Answer("", True), Answer("", None)]


def test_what_it_cannot_do_is_refused(tmp_path):
    with pytest.raises(UserError, match="points"):
        POINTS.write_examples([])
    with pytest.raises(UserError, match="points"):
        POINTS.read_examples(tmp_path / "train.jsonl")
    with pytest.raises(UserError, match=r"server\.layer_transfer"):
        POINTS.slm_layers(ModelConfig(), nn.Linear(2, 2))


def test_targets_may_be_missing_where_the_loss_is_its_own():
    class Regression(Points):
        """One that compares by squares."""

        targets = Modality.targets

        def loss(self, logits, batch):
            return (logits - batch[0]).square().mean()

    batch = POINTS.collate(EXAMPLES)
    assert Regression().loss(torch.zeros(3, 2), batch).item() == pytest.approx(2 * math.log(3) ** 2 / 6)
    with pytest.raises(NotImplementedError):
        Regression().targets(batch)


class Odd(Modality):
    """Returns what it is told to."""

    name = "odd"

    def __init__(self, logits, loss=None, rows=None):
        self.returned = logits, loss, rows

    def load_model(self, section, role, device, seed):
        raise NotImplementedError

    def collate(self, examples):
        return examples

    def logits(self, model, batch):
        return self.returned[0]

    def loss(self, logits, batch):
        return self.returned[1]

    def align(self, batch, slm_logits, llm_logits):
        return self.returned[2]

    def score(self, model, examples):
        raise NotImplementedError


@pytest.mark.parametrize(
    "logits", [None, 1.0, [[0.0]], torch.zeros(3), torch.zeros(1, 2, 3), torch.zeros(2, 2, dtype=torch.int64)]
)
def test_logits_of_another_form_are_refused_by_name(logits):
    with pytest.raises(UserError, match=r"Odd\.logits returned"):
        outputs(Odd(logits), torch.nn.Linear(1, 1), [])


@pytest.mark.parametrize("loss", [None, 0.5, torch.zeros(2), torch.zeros((), dtype=torch.int64)])
def test_loss_of_another_form_is_refused_by_name(loss):
    with pytest.raises(UserError, match=r"Odd\.loss returned"):
        outputs(Odd(torch.zeros(2, 3), loss), torch.nn.Linear(1, 1), [])


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (3, 2)])
def test_rows_of_different_shapes_are_refused(shape):
    targets = torch.zeros(2, dtype=torch.int64)
    rows = Rows(torch.zeros(2, 3), torch.zeros(shape), targets, targets)
    with pytest.raises(UserError, match="same rows and columns"):
        matched(Odd(None, None, rows), [], torch.zeros(2, 3), torch.zeros(shape))


def test_modality_has_no_features_for_controls_unless_it_defines_them():
    with pytest.raises(
        UserError, match=r"control and server\.pseudo_labels: points has no features .* Define Points\.evidence"
    ):
        Points().evidence([Point("a", (0.0, 1.0))], StatisticsConfig(features="ngrams"))
