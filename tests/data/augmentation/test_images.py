"""Augmentations of images, by hand; boxes follow."""

import random

import pytest
import torch
from tests.data.augmentation.fixed import Fixed
from tests.modalities.vision.tiny_detectors import example as scene
from torch import tensor

from fedcollm.data.augmentation.draws import Draws
from fedcollm.data.augmentation.images import ImageBatches, Picture, color, crop, cutout, flip, vertical_flip
from fedcollm.modalities.vision.boxes import Box
from fedcollm.modalities.vision.detection import DetectionTask
from fedcollm.modalities.vision.detection_pixels import DetectionPixels
from fedcollm.modalities.vision.set_prediction import Objects
from fedcollm.modalities.vision.task import ImageExample, ImageTask

PIXELS = tensor([[[1.0, 2.0], [3.0, 4.0]]])


def with_box(*box: float) -> Picture:
    return Picture(PIXELS, Objects(tensor([1]), tensor([box])))


def test_flips_mirror_pixels_and_boxes():
    left = flip(with_box(0.25, 0.1, 0.5, 0.2), 1.0, Fixed(0))
    assert left.pixels.tolist() == [[[2, 1], [4, 3]]]
    assert left.objects.boxes[0].tolist() == pytest.approx([0.75, 0.1, 0.5, 0.2])
    down = vertical_flip(with_box(0.25, 0.1, 0.5, 0.2), 1.0, Fixed(0))
    assert down.pixels.tolist() == [[[3, 4], [1, 2]]]
    assert down.objects.boxes[0].tolist() == pytest.approx([0.25, 0.9, 0.5, 0.2])


def test_crop_in_the_middle_of_its_ranges_is_the_image_itself():
    made = crop(with_box(0.5, 0.5, 0.5, 0.5), 1.0, Fixed(0.5))
    assert torch.allclose(made.pixels, PIXELS)
    assert made.objects.boxes[0].tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5])


def test_crop_is_a_window_whose_boxes_are_cut_or_left_out():
    # the lower ends: a window with a side of 0.8 whose center is at 0.4, so from 0 to 0.8 in both directions
    picture = Picture(
        torch.arange(10.0).repeat(1, 10, 1),
        Objects(tensor([0, 1, 2]), tensor([[0.4, 0.4, 0.8, 0.4], [0.8, 0.4, 0.4, 0.4], [0.92, 0.4, 0.3, 0.4]])),
    )
    made = crop(picture, 1.0, Fixed(0))
    # new pixel i has its center at 0.8 (i + 0.5) / 10, which is pixel 0.8 (i + 0.5) - 0.5
    assert made.pixels[0, 0].tolist() == pytest.approx([max(0.8 * (i + 0.5) - 0.5, 0) for i in range(10)], abs=1e-5)
    assert made.objects.classes.tolist() == [0, 1]  # of the third, 0.03 of 0.3 are visible
    assert made.objects.boxes.flatten().tolist() == pytest.approx([0.5, 0.5, 1, 0.5, 0.875, 0.5, 0.25, 0.5])


def test_crop_beyond_the_image_repeats_its_border():
    made = crop(Picture(tensor([[[5.0, 5.0, 5.0, 7.0]] * 4])), 1.0, Fixed(1))  # to 0.6 + 0.6
    assert made.pixels[0, 0, -1].item() == 7.0
    assert made.objects is None


def test_color_scales_around_the_mean_and_adds_a_share_of_the_deviation():
    gray = tensor([[[-1.0, 1.0]]])  # mean 0, standard deviation √2
    assert color(Picture(gray), 1.0, Fixed(1)).pixels.tolist()[0][0] == pytest.approx(
        [-1.2 + 0.28284, 1.2 + 0.28284], abs=1e-4
    )
    tinted = color(Picture(gray.repeat(2, 1, 1)), 1.0, Fixed(1)).pixels  # standard deviation 2 / √3
    assert tinted[0, 0, 0].item() == pytest.approx(-1.2 + 0.3 * 1.1547, abs=1e-4)


def test_cutout_has_the_mean_of_each_channel():
    pixels = torch.stack([torch.arange(16.0).reshape(4, 4), torch.ones(4, 4)])
    made = cutout(Picture(pixels), 2.0, Fixed(1)).pixels
    assert made[0, 2:, 2:].tolist() == [[7.5, 7.5], [7.5, 7.5]]
    assert torch.equal(made[:, :2], pixels[:, :2])
    assert torch.equal(made[1], pixels[1])
    assert pixels[0, 3, 3] == 15  # not in place


def test_batches_of_classes_and_of_boxes_leave_kept_pixels_alone():
    images = ImageTask("digits", "ab")
    one = ImageExample("1", PIXELS, 1)
    batch = ImageBatches(images, Draws({"flip": 1.0}, 1.0, 0, 0)).collate([one])
    assert batch.pixels.tolist() == [[[[2, 1], [4, 3]]]]
    assert batch.targets.tolist() == [1]
    assert images.collate([one]).pixels.tolist() == [PIXELS.tolist()]

    cells = DetectionTask("cells", "abc", DetectionPixels(8, 8))
    scenes = [scene(Box(0, 0, 10, 5, "a")), scene().without_label()]  # 20 x 10 pixels
    before = cells.collate(scenes)
    flipped = ImageBatches(cells, Draws({"flip": 1.0}, 1.0, 0, 0)).collate(scenes)
    assert torch.equal(flipped.pixels, before.pixels.flip(-1))
    assert flipped.objects[0].boxes.tolist() == [[0.75, 0.25, 0.5, 0.5]]
    assert flipped.objects[1] is None
    assert torch.equal(cells.collate(scenes).pixels, before.pixels)


@pytest.mark.parametrize("change", [crop, flip, vertical_flip, color, cutout])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_pixel_stays_a_number(change, channels):
    made = change(Picture(torch.ones(channels, 1, 1)), 10.0, random.Random(0))
    assert made.pixels.shape == (channels, 1, 1)
    assert made.pixels.isfinite().all()
