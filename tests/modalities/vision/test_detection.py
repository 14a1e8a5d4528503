"""The modality of detection: batches, rows, losses of both models, detections, notes and files."""

import math

import pytest
import torch
from tests.modalities.vision.tiny_detectors import TINY, example, png, save_detector
from torch import nn, tensor
from transformers import YolosConfig

from fedcollm.config import ModelConfig
from fedcollm.errors import NonFiniteError, UserError
from fedcollm.modalities.base import UNLABELLED, matched, outputs
from fedcollm.modalities.exhibits import Region
from fedcollm.modalities.vision.boxes import Box, DetectionExample
from fedcollm.modalities.vision.detection import DetectionPair, DetectionTask
from fedcollm.modalities.vision.detection_pixels import DetectionPixels

TASK = DetectionTask("cells", "abc", DetectionPixels(32, 32))
A, B = Box(0, 0, 10, 5, "a"), Box(10, 5, 20, 10, "c")


class Fixed(nn.Module):
    """Answers every image with the same two queries: an "a" at the top left with 3/4, and nothing with 1/2."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values):
        many = len(pixel_values)
        logits = tensor([[math.log(9), 0, 0, 0], [0, 0, 0, math.log(3)]]).repeat(many, 1, 1)
        boxes = tensor([[0.25, 0.25, 0.5, 0.5], [0.9, 0.5, 0.4, 1.0]]).repeat(many, 1, 1)
        return type("Answer", (), {"logits": logits + 0 * self.weight, "pred_boxes": boxes})()


def test_batch_has_boxes_in_units_of_the_image():
    batch = TASK.collate([example(A, B), example(), example(A).without_label()])
    assert batch.pixels.shape == (3, 3, 32, 32)
    first, second, third = batch.objects
    assert first.classes.tolist() == [0, 2]
    assert first.boxes.tolist() == [[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]]
    assert second.boxes.shape == (0, 4)
    assert third is None
    assert TASK.labelled(batch) == 2
    assert TASK.targets(batch).tolist() == [UNLABELLED] * 3


def test_rows_are_queries():
    batch = TASK.collate([example(A), example()])
    rows, loss = outputs(TASK, Fixed(), batch)
    assert rows.shape == (4, 8)
    assert rows[0].tolist() == pytest.approx([math.log(9), 0, 0, 0, 0.25, 0.25, 0.5, 0.5])
    assert torch.equal(rows[:2], rows[2:])
    assert loss > 0
    aligned = matched(TASK, batch, rows, rows)
    assert aligned.slm.shape == (4, 4)
    assert aligned.values.slm.shape == (4, 4)


def test_detections_are_the_likeliest_class_of_each_query_in_pixels():
    (found,) = TASK.detections(Fixed(), [example(A)])
    assert [one.box.label for one in found] == ["a", "a"]
    assert found[0].box[:4] == pytest.approx((0, 0, 10, 5))
    assert found[0].confidence == pytest.approx(0.75)
    assert found[1].box[:4] == pytest.approx((14, 0, 20, 10))  # clipped at the right, where it ends at 22
    assert found[1].confidence == pytest.approx(1 / 6)


def test_score_of_a_model_by_hand():
    score = TASK.score(Fixed(), [example(A, id="1"), example(B, id="2"), example(id="3"), example(A, B, id="4")])
    # found; not found; something is seen where nothing is; one of two
    assert score.outcomes == {"1": 1.0, "2": 0.0, "3": 0.0, "4": pytest.approx(51 / 101)}
    assert score.count == 4


def test_images_are_scored_in_several_batches_as_in_one():
    many = [example(A, id=str(i)) for i in range(40)]
    assert [len(found) for found in TASK.detections(Fixed(), many)] == [2] * 40
    assert TASK.scores_together
    assert TASK.score(Fixed(), []).count == 0


def test_notes_count_rules_once_for_each_image():
    task = DetectionTask("cells", "abc", DetectionPixels(8, 8))
    one = DetectionExample.read("x", png(), ("a", "b", "c"), [Box(-3, 0, 4, 4, "a"), Box(1, 1, 1, 4, "a")])
    assert task.notes() == []
    task.collate([one, one])
    task.collate([one])
    assert task.notes() == [
        "1 boxes reach outside of their image and were clipped",
        "1 boxes have no area and were dropped",
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["logits", "pred_boxes"])
def test_outputs_that_are_not_finite_are_an_error_and_no_hit(value, what):
    class Broken(Fixed):
        config = YolosConfig(name_or_path="some/detector")

        def forward(self, pixel_values):
            answer = super().forward(pixel_values)
            getattr(answer, what)[-1, -1, 0] = value
            return answer

    with pytest.raises(NonFiniteError, match=r"scoring: .* detector some/detector became NaN or infinite; the last"):
        TASK.score(Broken(), [example(A, id="1"), example(B, id="2")])
    with pytest.raises(NonFiniteError):
        TASK.answers(Broken(), [example(A)])


def test_notes_count_images_with_more_objects_than_queries():
    task = DetectionTask("cells", "abc", DetectionPixels(8, 8))
    crowded, fits = example(A, B, A), example(A, B, shade=9)
    batch = task.collate([crowded, fits, crowded, example(A, B, A, shade=8).without_label()])
    assert task.notes() == []
    task.logits(Fixed(), batch)
    assert task.notes() == ["1 images have more objects than the 2 queries of a detector, some of which it misses"]
    task.collate([crowded.without_label()])
    assert len(task.notes()) == 1


def test_notes_say_that_a_scored_set_has_no_object():
    task = DetectionTask("cells", "abc", DetectionPixels(8, 8))
    task.score(Fixed(), [example(A, id="1"), example(id="2")])
    task.score(Fixed(), [])
    assert task.notes() == []
    task.score(Fixed(), [example(id="2")])
    assert task.notes() == [
        "a set without any object was scored: it has no map, and its ap50 says how often nothing is shown"
    ]


def test_report_shows_true_boxes_and_those_that_are_sure_enough():
    shown = TASK.exhibit(example(A, B))
    assert shown.truth == "1 a, 1 c"
    assert shown.picture.startswith(b"\x89PNG")
    assert shown.regions == (Region(0, 0, 0.5, 0.5, "a"), Region(0.5, 0.5, 1, 1, "c"))
    (answer,) = TASK.answers(Fixed(), [example(A, B)])
    assert answer.text == "1 a"
    (region,) = answer.regions
    assert (region.left, region.top, region.right, region.bottom) == pytest.approx((0, 0, 0.5, 0.5))
    assert (region.label, region.confidence) == ("a", pytest.approx(0.75))
    assert TASK.exhibit(example()).truth == "nothing"


def test_examples_reach_a_deployed_client(tmp_path):
    file = tmp_path / "examples.jsonl"
    file.write_text(TASK.write_examples([example(A, B), example(id="y")]), encoding="utf-8")
    assert [one.to_wire() for one in TASK.read_examples(file)] == [example(A, B).to_wire(), example(id="y").to_wire()]
    assert TASK.facts() == {"classes": ["a", "b", "c"]}
    with pytest.raises(UserError, match="class 'c'"):
        DetectionTask("cells", "ab", DetectionPixels(8, 8)).read_examples(file)


@pytest.mark.parametrize("family", TINY)
def test_two_models_with_other_pixels_and_queries_are_matched(family, tmp_path):
    pair = DetectionPair(TASK, DetectionTask("cells", "abc", DetectionPixels(40, 24)))
    places = {
        "slm": save_detector("yolos", tmp_path / "slm", 5, 3),
        "llm": save_detector(family, tmp_path / "llm", 5, 6),
    }
    batch = pair.collate([example(A), example(B, shade=9).without_label()])
    assert (batch.slm.pixels.shape, batch.llm.pixels.shape) == ((2, 3, 32, 32), (2, 3, 40, 24))
    found = {}
    for role, place in places.items():
        section = ModelConfig(source=place, dtype="float32", layers=None)
        model = pair.load_model(section, role, torch.device("cpu"), 1).eval()
        found[role] = outputs(pair.of(role), model, pair.part(batch, role))[0]
    rows = matched(pair, batch, found["slm"], found["llm"])
    assert rows.slm.shape == rows.llm.shape == (2 * 3, 4)
    assert (pair.rows(batch), pair.labelled(batch)) == (2, 1)
    for call in (pair.logits, pair.score):
        with pytest.raises(TypeError, match="role"):
            call(nn.Identity(), batch)
