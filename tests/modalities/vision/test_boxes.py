"""Images with boxes: what is clipped, dropped and counted, and how examples reach a file and come back."""

import base64
import json

import pytest
from tests.modalities.vision.tiny_detectors import example, png

from fedcollm.errors import UserError
from fedcollm.modalities.vision.boxes import NOTHING, Box, DetectionExample, from_row, told


def test_boxes_are_clipped_and_those_without_area_dropped():
    outside, behind, flat, inside = (
        Box(-5, 2, 30, 8, "a"),
        Box(25, 2, 30, 8, "a"),
        Box(3, 3, 3, 9, "b"),
        Box(1, 1, 4, 5, "c"),
    )
    one = DetectionExample.read("x", png(20, 10), tuple("abc"), [outside, behind, flat, inside], crowds=2)
    assert one.boxes == (Box(0, 2, 20, 8, "a"), inside)
    assert (one.width, one.height) == (20, 10)
    assert one.changed == {"clipped": 1, "no_area": 2, "crowd": 2}
    assert told([one.changed, one.changed]) == [
        "2 boxes reach outside of their image and were clipped",
        "4 boxes have no area and were dropped",
        "4 boxes are regions of many objects (iscrowd) and were dropped",
    ]


def test_negative_sides_are_no_area():
    assert Box(5, 5, 3, 9, "a").area == 0
    assert DetectionExample.read("x", png(), ("a",), [Box(5, 5, 3, 9, "a")]).boxes == ()


@pytest.mark.parametrize(("labels", "expected"), [("abb", "b"), ("ab", "a"), ("ba", "a"), ("c", "c"), ("", NOTHING)])
def test_label_is_the_most_frequent_class(labels, expected):
    assert example(*(Box(i, 0, i + 2, 2, label) for i, label in enumerate(labels))).label == expected


def test_unlabelled_example_knows_nothing_of_its_boxes():
    one = example(Box(-1, 0, 2, 2, "a")).without_label()
    assert (one.label, one.boxes, one.changed) == (None, None, {})
    assert one.content == example(Box(-1, 0, 2, 2, "a")).content


def test_example_reaches_a_file_and_comes_back(tmp_path):
    one = DetectionExample.read("x", png(), ("a", "b"), [Box(1, 2, 3.5, 4, "b"), Box(15, 0, 22, 4, "a")], "ward 1")
    back = from_row(json.loads(json.dumps(one.to_row())), "here", ("a", "b"))
    assert back.to_wire() == one.to_wire()
    assert back.boxes == (Box(1, 2, 3.5, 4, "b"), Box(15, 0, 20, 4, "a"))
    (tmp_path / "x.png").write_bytes(png())
    file = DetectionExample.read("x", tmp_path / "x.png", ("a", "b"), one.boxes, "ward 1")
    assert file.to_row() == one.to_row()


IMAGE = base64.b64encode(png()).decode()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "is no example"),
        ({"id": "x", "image": IMAGE}, "is no example"),
        ({"id": "x", "image": IMAGE, "boxes": None}, "is no example"),
        ({"id": "x", "image": "?", "boxes": []}, "base64"),
        ({"id": "x", "image": base64.b64encode(b"no image").decode(), "boxes": []}, "can't be read as an image"),
        ({"id": "x", "image": base64.b64encode(png()[:-30]).decode(), "boxes": []}, "can't be read as an image"),
        ({"id": "x", "image": IMAGE, "boxes": [[0, 0, 1, "a"]]}, "is no box"),
        ({"id": "x", "image": IMAGE, "boxes": [[0, 0, 1, True, "a"]]}, "is no box"),
        ({"id": "x", "image": IMAGE, "boxes": [[0, 0, 1, 1, 3]]}, "is no box"),
        ({"id": "x", "image": IMAGE, "boxes": [[0, 0, 1, 10**400, "a"]]}, "is no box"),
        ({"id": "x", "image": IMAGE, "boxes": [[0, 0, 1, float("nan"), "a"]]}, "no finite number"),
        ({"id": "x", "image": IMAGE, "boxes": [[0, 0, 1, 1, "d"]]}, "class 'd'"),
    ],
)
def test_rows_that_are_no_example_are_named(row, said):
    with pytest.raises(UserError, match=said):
        from_row(row, "line 3", ("a", "b"))


def test_image_that_changed_since_it_was_read_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(png(shade=1))
    one = DetectionExample.read("x", tmp_path / "x.png", ("a",), [])
    assert one.image().size == (20, 10)
    (tmp_path / "x.png").write_bytes(png(shade=2))
    with pytest.raises(UserError, match="changed"):
        one.image()
