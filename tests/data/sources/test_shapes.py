"""The drawn scenes: always the same, with boxes that fit their shapes."""

import hashlib

import numpy as np
import pytest

from fedcollm.data.sources import shapes
from fedcollm.data.sources.shapes import PLAIN, SHAPES, STYLES, load_shapes
from fedcollm.modalities.vision.boxes import Box


@pytest.fixture(scope="module")
def pool():
    with pytest.MonkeyPatch.context() as patch:
        for name, count in (("PUBLIC", 30), ("TRAIN", 8), ("TEST", 4)):
            patch.setattr(shapes, name, count)
        return load_shapes()


def test_clients_have_styles_of_their_own_and_the_public_set_has_none_of_them(pool):
    assert {scene.group for scene in pool.public} == {"plain"}
    for part, count in ((pool.train, 8), (pool.test, 4)):
        assert [scene.group for scene in part] == [group for group in STYLES for _ in range(count)]
    scenes = [*pool.public, *pool.train, *pool.test]
    assert len({scene.id for scene in scenes}) == len({scene.content for scene in scenes}) == len(scenes)


def test_scenes_are_always_the_same(pool):
    boxes = repr([[tuple(box) for box in scene.boxes] for scene in pool.train[:3]])
    assert hashlib.sha256(boxes.encode()).hexdigest()[:12] == "d51bd2571423"
    again = shapes._scene("night", STYLES["night"], 0)
    assert again.to_wire() == pool.train[0].to_wire()


def test_scenes_have_one_to_three_shapes_that_hardly_overlap(pool):
    scenes = [*pool.public, *pool.train]
    assert {len(scene.boxes) for scene in scenes} == {1, 2, 3}
    assert {box.label for scene in scenes for box in scene.boxes} == set(SHAPES)
    for scene in scenes:
        assert scene.image().size == (64, 64)
        for number, one in enumerate(scene.boxes):
            assert 18 <= one.right - one.left == one.bottom - one.top <= 32
            assert all(shapes._apart(one, other) for other in scene.boxes[:number])
        assert not any(scene.changed.values())


@pytest.mark.parametrize("label", SHAPES)
def test_box_is_as_large_as_its_shape(label, monkeypatch):
    """On a background without noise, the pixels of the ink reach every side of the box and none outside of it."""
    box = Box(5, 9, 31, 35, label)
    monkeypatch.setattr(shapes, "_free_place", lambda taken, draw: None if taken else box)
    scene = shapes._scene("plain", PLAIN[0]._replace(noise=0.0), 0)
    pixels = np.asarray(scene.image())
    drawn = (pixels != pixels[0, 0]).any(-1)
    rows, columns = (np.flatnonzero(drawn.any(axis)) for axis in (1, 0))
    assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (5, 9, 31, 35)
    assert scene.boxes == (box,)
