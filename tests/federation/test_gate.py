"""What each model teaches counts by its reliability: by hand, and in a round."""

import pytest
import torch
from torch import nn

import fedcollm
from fedcollm.config.baselines import changed
from fedcollm.config.choices import GATES as CHOICES
from fedcollm.errors import UserError
from fedcollm.federation.gate import GATES, Gate, build_gate, check_gate, hold_out, reliability
from fedcollm.modalities.base import Modality
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.vision.task import ImageExample, ImageTask
from fedcollm.seeding import RunIdentity
from fedcollm.training.distillation import ModelPair

CLASSES = ("a", "b")


class Says(nn.Module):
    """A classifier that reads its answer from the image: row 0 is the SLM's, row 1 the LLM's."""

    def __init__(self, row: int):
        super().__init__()
        self.row = row


class Reads(ImageTask):
    """Images of two rows, which are the logits of the two models."""

    def logits(self, model, batch):
        return batch.pixels[:, 0, model.row]


TASK = Reads("pixels", CLASSES)
PAIR = ModelPair(TASK, Says(0), Says(1))


def image(slm: int, llm: int, target: int | None, name: str = "") -> ImageExample:
    """An image for which each model says the class of this index."""
    rows = torch.nn.functional.one_hot(torch.tensor([slm, llm]), 2).float()[None]
    return ImageExample(f"{name}{slm}{llm}{target}", rows, target)


def text(name: int, answer: int | None, label: str = "a") -> TextExample:
    return TextExample(str(name), "x", (label, "z"), answer, (label, "z"))


def test_every_choice_has_a_gate_of_its_name():
    assert GATES.keys() == CHOICES.keys()


def test_a_quarter_of_each_label_is_held_out():
    public = [*(text(i, 0) for i in range(8)), *(text(i, 1) for i in range(8, 12)), text(12, None)]
    rest, held_out = hold_out(public, seed=0)
    assert [e.label for e in held_out] == ["a", "a", "z"]
    assert [e.id for e in rest] == [e.id for e in public]
    assert {e.id for e in rest if e.label is None} == {e.id for e in held_out} | {"12"}
    assert hold_out(public, seed=0)[1] == held_out
    assert any(hold_out(public, seed=seed)[1] != held_out for seed in range(1, 5))


def test_reliability_by_hand():
    # the teacher says a four times and is right once, and b four times and is always right: 5 of 8 in all
    # the taught model is right about three of the first four and two of the other ones: 5 of 8 too
    predicted = ["a"] * 4 + ["b"] * 4
    teacher, taught = [True] + [False] * 3 + [True] * 4, [True] * 3 + [False] + [True] * 2 + [False] * 2
    weight = reliability(predicted, teacher, taught, chance=0.25)
    # a: (1 + 4 · 5/8) / 8 = 7/16, and (3 + 2.5) / 8 = 11/16; above chance: 3/16 and 7/16
    assert weight("a") == pytest.approx(3 / 7)
    assert weight("b") == 1.0  # (4 + 2.5) / 8 is more than (2 + 2.5) / 8
    assert weight("c") == 1.0  # never predicted: as over all classes


@pytest.mark.parametrize(
    ("teacher", "taught", "expected"),
    [([False, False], [True, False], 0.0), ([True, False], [False, False], 1.0), ([True, False], [True, True], 0.5)],
)
def test_reliability_at_and_below_chance(teacher, taught, expected):
    # of two examples of one class, the accuracies are 0, 1/2 or 1, and guessing gives 0
    assert reliability(["a", "a"], teacher, taught, chance=0.0)("a") == pytest.approx(expected)
    assert reliability(["a", "a"], [True, False], taught, chance=0.5)("a") == 0.0


def test_trust_is_by_the_class_that_the_teacher_predicts():
    # the SLM is right about a and wrong about b; the LLM is always right
    held_out = [image(0, 0, 0), image(0, 0, 0), image(1, 0, 0), image(1, 0, 0)]
    public = [image(0, 1, None), image(1, 1, 1)]
    trust, notes = Gate("reliability", held_out).trust(PAIR, public, batch_size=4)
    # chance 1/2; a: (2 + 4/2) / 6 - 1/2 = 1/6 of (2 + 4) / 6 - 1/2 = 1/2; b: (0 + 2) / 6 - 1/2 < 0
    assert trust["llm"] == pytest.approx([1 / 3, 0.0])
    assert trust["slm"] == [1.0, 1.0]
    assert "of 4 held-out examples, the small model labels 50 % correctly and the large one 100 %" in notes[0]
    assert "small model teaches weighs 0.17 on average, and what the large one teaches 1.00" in notes[0]


def test_no_gate_leaves_the_public_set_alone():
    public = [text(1, 0)]
    assert build_gate("none", public, RunIdentity()) == (public, None)


def test_too_few_labels_are_refused():
    with pytest.raises(UserError, match=r"gate reliability .* 7 are too few. Raise task.public_size to 8"):
        build_gate("reliability", [text(i, 0) for i in range(7)], RunIdentity())
    _, gate = build_gate("reliability", [text(i, 0) for i in range(8)], RunIdentity())
    assert gate is not None
    assert len(gate.held_out) == 2


def test_answers_that_are_no_choice_are_refused():
    class Free(ImageTask):
        def probabilities(self, model, examples):
            return [torch.ones(1) for _ in examples]

    pair = ModelPair(Free("free", CLASSES), Says(0), Says(1))
    with pytest.raises(UserError, match="gate needs choices"):
        Gate("reliability", [image(0, 0, 0)]).trust(pair, [], batch_size=1)


def test_modality_without_probabilities_is_refused():
    class Bare(ImageTask):
        probabilities = Modality.probabilities

    bare = Bare("bare", CLASSES)
    with pytest.raises(UserError, match=r"gate reliability needs Bare.probabilities, object.with_answer, which"):
        check_gate("reliability", bare, object())
    check_gate("none", bare, object())
    check_gate("reliability", TASK, image(0, 0, 0))


def test_run_with_a_gate_says_so(tiny_config, tmp_path):
    values = {"task.public_size": 16, "task.unlabelled_size": 8, "server.distillation.gate": "reliability"}
    config = changed(tiny_config, values | {"client.loss": "generalized", "federation.rounds": 1})
    first, last = fedcollm.run(config, tmp_path).records
    assert first.notes == ()
    assert "gate: of 4 held-out examples" in last.notes[0]
