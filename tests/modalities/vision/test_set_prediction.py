"""DETR's loss and the matching of two detectors, on values worked by hand."""

import math

import pytest
import torch
from torch import tensor

from fedcollm.modalities.base import UNLABELLED
from fedcollm.modalities.vision.set_prediction import (
    Objects,
    matched_rows,
    pair_queries,
    pairwise_giou,
    set_loss,
    to_corners,
)

LN3 = math.log(3)


def test_corners():
    assert torch.equal(to_corners(tensor([[0.5, 0.25, 0.5, 0.25]])), tensor([[0.25, 0.125, 0.75, 0.375]]))


def test_giou_by_hand():
    # [0, 2]² and [1, 3] x [0, 2]: 2/6; the hull is their union. [0, 1]² and [2, 3] x [0, 1]: 0 - (3 - 2) / 3
    found = pairwise_giou(tensor([[0.0, 0, 2, 2], [0, 0, 1, 1]]), tensor([[1.0, 0, 3, 2], [2, 0, 3, 1]]))
    assert found[0, 0].item() == pytest.approx(1 / 3)
    assert found[1, 1].item() == pytest.approx(-1 / 3)
    # [0, 2]² and [2, 3] x [0, 1]: no overlap, union 5, hull 6
    assert found[0, 1].item() == pytest.approx(-1 / 6)


#: Two queries of one image with one class: p = (3/4, 1/4) with the box [.25, .5, .5, 1], p = (1/4, 3/4) with [.75, .5,
#: .5, 1], the other half.
TWO = tensor([[LN3, 0, 0.25, 0.5, 0.5, 1], [0, LN3, 0.75, 0.5, 0.5, 1]])


def test_loss_of_two_queries_by_hand():
    """The object is the left half but for a quarter of its width: its query is the first, IoU 3/4, L1 .0625 + .125."""
    objects = Objects(tensor([0]), tensor([[0.1875, 0.5, 0.375, 1.0]]))
    # both queries are right with 3/4: (1 · ln 4/3 + .1 · ln 4/3) / 1.1; GIoU is IoU, since one box is in the other
    expected = math.log(4 / 3) + 5 * 0.1875 + 2 * 0.25
    assert set_loss(TWO, [objects]).item() == pytest.approx(expected)


def test_object_is_matched_by_place_even_if_another_query_is_surer():
    right = Objects(tensor([0]), tensor([[0.75, 0.5, 0.5, 1.0]]))
    # second query: class cost -1/4, L1 0, GIoU 1; first: -3/4 + 5 · .5 - 2 · 0. Both are wrong with 1/4 then
    assert set_loss(TWO, [right]).item() == pytest.approx(math.log(4))


def test_image_without_objects_teaches_that_there_is_nothing():
    nothing = Objects(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    # the mean of two equal weights: (ln 4 + ln 4/3) / 2, and no boxes
    assert set_loss(TWO, [nothing]).item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)


def test_unlabelled_images_do_not_count():
    objects = Objects(tensor([0]), tensor([[0.25, 0.5, 0.5, 1.0]]))
    both = torch.cat([TWO, -3 * TWO]).requires_grad_()
    loss = set_loss(both, [objects, None])
    assert loss.item() == pytest.approx(math.log(4 / 3))
    loss.backward()
    assert both.grad[2:].abs().max() == 0
    assert both.grad[:2].abs().max() > 0
    nothing = set_loss(both, [None, None])
    assert nothing.item() == 0
    nothing.backward()


def test_loss_that_is_not_finite_is_left_to_the_training_loop():
    assert set_loss(TWO * math.nan, [Objects(tensor([0]), tensor([[0.5, 0.5, 1, 1]]))]).isnan()
    rows = matched_rows(TWO * math.nan, TWO, 1)
    assert rows.slm.isnan().all()


def test_queries_are_matched_by_class_and_place():
    rows, columns = pair_queries(TWO, TWO.flip(0))
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])


def test_models_may_have_different_numbers_of_queries():
    three = torch.cat([tensor([[0, LN3, 0.1, 0.1, 0.1, 0.1]]), TWO.flip(0)])
    rows, columns = pair_queries(TWO, three)
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [2, 1])
    found = matched_rows(torch.cat([TWO, TWO]), torch.cat([three, three.flip(0)]), 2)
    assert torch.equal(found.slm, found.llm)
    assert found.slm.shape == (4, 2)
    assert found.slm_targets.tolist() == [UNLABELLED] * 4
    other = matched_rows(three, TWO, 1)
    assert other.slm.shape == (2, 2)


def test_place_of_a_query_that_sees_nothing_does_not_matter():
    """The second query of each model sees nothing and lies where the object of the other model is."""
    sure = 20.0
    one = tensor([[sure, 0, 0.2, 0.5, 0.2, 0.2], [0, sure, 0.8, 0.5, 0.2, 0.2]])
    two = tensor([[0, sure, 0.2, 0.5, 0.2, 0.2], [sure, 0, 0.8, 0.5, 0.2, 0.2]])
    # objects together: 5 · .6 + 2 · (1 + .5) = 6; apart: twice TV 1, and both at the same place
    assert pair_queries(one, two)[1].tolist() == [0, 1]
    near = two.clone()
    near[1, 2] = 0.25
    # together: 5 · .05 + 2 · (1 - .6) = 1.05 for the objects, 0 for the others; apart: at least twice TV 1
    assert pair_queries(one, near)[1].tolist() == [1, 0]


def test_rows_weigh_as_much_as_a_model_sees_and_boxes_as_much_as_the_teacher_sees():
    slm = tensor([[LN3, 0, 0.25, 0.5, 0.5, 1], [0, 20.0, 0.75, 0.5, 0.5, 1]])
    llm = tensor([[0, LN3, 0.25, 0.5, 0.5, 1], [0, 20.0, 0.75, 0.5, 0.5, 0.5]])
    rows = matched_rows(slm.requires_grad_(), llm, 1)
    assert rows.weights.tolist() == pytest.approx([0.75, 0.1])  # max(3/4, 1/4); the least weight
    assert rows.values.slm_weights.tolist() == pytest.approx([0.75, 0], abs=1e-6)
    assert rows.values.llm_weights.tolist() == pytest.approx([0.25, 0], abs=1e-6)
    assert rows.values.slm.tolist()[0] == [1.25, 2.5, 2.5, 5]
    assert not rows.weights.requires_grad
    assert not rows.values.slm_weights.requires_grad
    assert rows.values.slm.requires_grad
