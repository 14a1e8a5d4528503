"""Images: one row of logits each, by hand on a model whose logits are the pixels."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedcollm.modalities.base import UNLABELLED, Task
from fedcollm.modalities.vision.task import ImageExample, ImageTask, load_digit_images


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


def test_task_fulfils_the_interface():
    assert isinstance(TASK, Task)


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


def test_all_images_are_of_one_size():
    assert {TASK.size(example) for example in IMAGES} == {1}


def test_label_and_its_removal():
    assert IMAGES[1].label == "2"
    unlabelled = IMAGES[1].without_label()
    assert (unlabelled.target, unlabelled.label, unlabelled.id) == (None, None, IMAGES[1].id)
    assert unlabelled.pixels is IMAGES[1].pixels


def test_content_tells_images_apart_and_ignores_labels():
    assert IMAGES[0].content == image([0.5, 0.0, 0.25], 1).content
    assert IMAGES[0].content != IMAGES[1].content


def test_digits_are_1797_images_from_0_to_1():
    pool = load_digit_images()
    assert len(pool.train) == 1797
    assert pool.test is None
    assert {example.target for example in pool.train} == set(range(10))
    assert pool.train[0].pixels.shape == (1, 8, 8)
    assert min(e.pixels.min().item() for e in pool.train) == 0.0
    assert max(e.pixels.max().item() for e in pool.train) == 1.0
    assert len({example.id for example in pool.train}) == 1797
