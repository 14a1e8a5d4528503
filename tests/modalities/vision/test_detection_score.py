"""AP of an image, COCO's mAP of a set, and the confusion of classes, on cases worked by hand."""

import math

import pytest
from tests.modalities.vision.tiny_detectors import example

from fedcollm.errors import NonFiniteError, UserError
from fedcollm.modalities.vision import detection_score as scores
from fedcollm.modalities.vision.boxes import NOTHING, Box
from fedcollm.modalities.vision.detection_score import Detection, coco_map, detection_score, image_ap, iou

A, B = Box(0, 0, 4, 4, "a"), Box(10, 0, 14, 4, "b")


def seen(box: Box, confidence: float, label: str | None = None) -> Detection:
    return Detection(box if label is None else box._replace(label=label), confidence)


def test_iou_by_hand():
    assert iou(A, A) == 1
    assert iou(A, B) == 0
    assert iou(A, Box(2, 2, 6, 6, "a")) == pytest.approx(4 / 28)
    assert iou(Box(1, 1, 1, 1, "a"), Box(1, 1, 1, 1, "a")) == 0


@pytest.mark.parametrize(
    ("objects", "found", "expected"),
    [
        ([A, B], [seen(A, 0.9), seen(B, 0.8)], 1.0),
        ([A, B], [], 0.0),
        ([A], [seen(A, 0.9, "b")], 0.0),  # the wrong class
        ([A], [seen(Box(0, 0, 4, 2, "a"), 0.9)], 1.0),  # an IoU of one half
        ([A], [seen(Box(0, 0, 4, 1.9, "a"), 0.9)], 0.0),
        # a false one first: precision 1/2 up to recall 1
        ([A], [seen(B, 0.9), seen(A, 0.8)], 0.5),
        # found twice, and nothing else: precision 1 at 51 of 101 recalls (0 to .5), then nothing
        ([A, B], [seen(A, 0.9), seen(A, 0.8)], 51 / 101),
        # precision 1 up to recall 1/2, then 2/3
        ([A, B], [seen(A, 0.9), seen(A, 0.8), seen(B, 0.1)], (51 + 50 * 2 / 3) / 101),
        # the order of the list is no matter
        ([A, B], [seen(B, 0.1), seen(A, 0.8), seen(A, 0.9)], (51 + 50 * 2 / 3) / 101),
        ([], [], 1.0),
        ([], [seen(A, 0.49)], 1.0),
        ([], [seen(A, 0.5)], 0.0),
    ],
)
def test_ap_of_an_image(objects, found, expected):
    assert image_ap(objects, found) == pytest.approx(expected)


def test_score_is_a_sum_over_images_with_an_outcome_each():
    images = [example(A, B, id="one"), example(id="two"), example(B, id="three")]
    found = [[seen(A, 0.9), seen(A, 0.8)], [], [seen(B, 0.7)]]
    score = detection_score(images, found)
    assert score.count == 3
    assert score.outcomes == {"one": pytest.approx(51 / 101), "two": 1.0, "three": 1.0}
    assert score.value == pytest.approx((51 / 101 + 2) / 3)
    assert next(iter(score.sums)) == "ap50"
    # class a: its object first, AP 1. Class b: found in one of two images, AP 51/101
    assert score.mean("map50") == pytest.approx((1 + 51 / 101) / 2)
    assert score.confusion == {("a", "a"): 1, (NOTHING, "a"): 1, ("b", NOTHING): 1, ("b", "b"): 1}


def test_map_is_that_of_coco():
    """One box overlaps its object with an IoU of .75: right at the thresholds .5 to .75, which are 6 of 10."""
    images = [example(A)]
    assert coco_map(images, [[seen(Box(0, 0, 4, 3, "a"), 0.9)]]) == {
        "map50": pytest.approx(1.0),
        "map": pytest.approx(0.6),
    }
    assert coco_map(images, [[]]) == {"map50": 0.0, "map": 0.0}
    assert coco_map([example()], [[seen(A, 0.9)]]) == {"map50": 0.0, "map": 0.0}


def test_own_ap_equals_that_of_coco_for_one_image_and_class():
    objects = [Box(5 * i, 0, 5 * i + 4, 4, "a") for i in range(4)]
    order = [0, 0, 2, 1, 1, 3]
    found = [seen(objects[place], 0.9 - 0.1 * rank) for rank, place in enumerate(order)]
    assert image_ap(objects, found) == pytest.approx(coco_map([example(*objects)], [found])["map50"])


def test_parts_add_up_to_a_mean_weighted_by_images():
    one = detection_score([example(A, id="1"), example(B, id="2")], [[seen(A, 0.9)], [seen(B, 0.9)]])
    two = detection_score([example(A, id="3")], [[]])
    assert (one + two).mean("map50") == pytest.approx(2 / 3)
    assert (one + two).outcomes == {"1": 1.0, "2": 1.0, "3": 0.0}


def test_part_without_objects_does_not_change_the_map_of_the_others():
    one = detection_score([example(A, id="1"), example(id="2")], [[seen(A, 0.9)], []])
    none = detection_score([example(id="3"), example(id="4")], [[], []])
    assert (one.counts, none.counts) == ({"map50": 1, "map": 1}, {"map50": 0, "map": 0})
    assert math.isnan(none.mean("map50"))
    for total in (one + none, none + one, none + none + one):
        assert total.mean("map50") == total.mean("map") == pytest.approx(1.0)
    assert (none + none).counts == none.counts
    assert (one + none).count == 4
    assert (none + none).value == 1


def test_map_of_parts_is_weighted_by_images_with_objects():
    one = detection_score([example(A, id="1"), *[example(id=f"n{i}") for i in range(6)]], [[seen(A, 0.9)], *[[]] * 6])
    two = detection_score([example(A, id=str(i)) for i in range(3)], [[]] * 3)
    assert (one + two).mean("map50") == pytest.approx(1 / 4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_detection_that_is_not_finite_is_an_error(value):
    for one in (seen(A, value), seen(A._replace(right=value), 0.9)):
        with pytest.raises(NonFiniteError, match="scoring"):
            detection_score([example(A)], [[one]])


def test_package_that_is_missing_is_named(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(scores.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"fedcollm\[detection\]"):
        detection_score([example(A)], [[]])
