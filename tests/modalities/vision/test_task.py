"""Images: one row of logits each, by hand on a model whose logits are the pixels."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.modalities.base import UNLABELLED
from fedcollm.modalities.vision.task import ImageExample, ImageTask


class PixelsAreLogits(nn.Module):
    """Logits are twice the pixels."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0, dtype=dtype))

    def forward(self, pixel_values):
        assert pixel_values.dtype == self.weight.dtype
        return SimpleNamespace(logits=pixel_values.flatten(1) * self.weight)


TASK = ImageTask("pixels", ["a", "b", "c"])


def image(pixels: list[float], target: int | None) -> ImageExample:
    return ImageExample(str(pixels), torch.tensor(pixels).reshape(1, 1, 3), target)


IMAGES = [image([0.5, 0.0, 0.25], 0), image([0.0, 1.0, 0.0], 2), image([0.0, 0.25, 0.5], None)]


def test_batch_stacks_images_in_order():
    batch = TASK.collate(IMAGES)
    assert batch.pixels.shape == (3, 1, 1, 3)
    assert torch.equal(batch.pixels[1], IMAGES[1].pixels)
    assert TASK.targets(batch).tolist() == [0, 2, UNLABELLED]


def test_logits_have_a_row_an_image():
    logits = TASK.logits(PixelsAreLogits(), TASK.collate(IMAGES))
    assert logits.tolist() == [[1.0, 0.0, 0.5], [0.0, 2.0, 0.0], [0.0, 0.5, 1.0]]


def test_pixels_follow_the_models_dtype_and_logits_are_float32():
    logits = TASK.logits(PixelsAreLogits(torch.bfloat16), TASK.collate(IMAGES))
    assert logits.dtype == torch.float32
    assert logits[0].tolist() == [1.0, 0.0, 0.5]


def test_score_counts_the_images_whose_largest_logit_is_their_class():
    images = [*IMAGES[:2], image([0.0, 0.0, 1.0], 2)]
    images = [replace(one, id=name) for one, name in zip(images, "xyz", strict=True)]
    score = TASK.score(PixelsAreLogits(), images)
    assert score.sums == {"acc": 2.0}
    assert score.count == 3
    assert score.outcomes == {"x": 1.0, "y": 0.0, "z": 1.0}
    assert score.confusion == {("a", "a"): 1, ("c", "b"): 1, ("c", "c"): 1}
    assert score.value == pytest.approx(2 / 3)


def test_probabilities_are_the_softmax_of_the_logits():
    found = TASK.probabilities(PixelsAreLogits(), [image([math.log(3) / 2, 0.0, 0.0], None)])
    torch.testing.assert_close(found[0], torch.tensor([0.6, 0.2, 0.2]))  # 3 : 1 : 1


def test_all_images_are_of_one_size():
    assert {TASK.size(example) for example in IMAGES} == {1}


def test_label_and_its_removal():
    assert IMAGES[1].label == "2"
    unlabelled = IMAGES[1].without_label()
    assert (unlabelled.target, unlabelled.label, unlabelled.id) == (None, None, IMAGES[1].id)
    assert unlabelled.pixels is IMAGES[1].pixels


def test_an_image_can_get_another_class():
    assert image([0.0, 0.0, 0.0], None).with_answer(2).label == "2"


def test_content_tells_images_apart_and_ignores_labels():
    assert IMAGES[0].content == image([0.5, 0.0, 0.25], 1).content
    assert IMAGES[0].content != IMAGES[1].content


def test_model_with_another_number_of_classes_is_refused():
    section = ModelConfig(source="vit-digits-small")
    with pytest.raises(UserError, match="10 classes"):
        TASK.load_model(section, "slm", torch.device("cpu"), 0)
    ten = ImageTask("digits", "0123456789").load_model(section, "slm", torch.device("cpu"), 0)
    assert ten.config.num_labels == 10


def test_examples_have_no_file(tmp_path):
    with pytest.raises(UserError, match="pixels"):
        TASK.write_examples([])
    with pytest.raises(UserError, match="pixels"):
        TASK.read_examples(tmp_path)


def test_models_are_not_cut_from_each_other():
    with pytest.raises(UserError, match=r"server\.layer_transfer"):
        TASK.slm_layers(ModelConfig(source="vit-digits-small"), nn.Linear(1, 1))
