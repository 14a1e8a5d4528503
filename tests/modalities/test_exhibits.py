import io

import numpy as np
import pytest
from PIL import Image

from fedcollm.modalities.exhibits import Answer, Exhibit, Region, bounded, from_json, to_json
from fedcollm.modalities.pictures import image_of, picture

PIXEL = picture(Image.new("RGB", (1, 1), "red"))
WHOLE = Exhibit(
    "7",
    "a text",
    "cat",
    PIXEL,
    (Region(0.0, 0.25, 0.5, 1.0, "cat"),),
    {
        "slm": Answer("dog", False, (("a", "same"), ("b", "replaced")), (Region(0.0, 0.0, 1.0, 1.0, "dog", 0.5),)),
        "llm": Answer(),
    },
)


def test_round_trip():
    assert from_json(to_json([WHOLE])) == [WHOLE]
    assert from_json([]) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("picture", "<svg onload=alert(1)>"),
        ("picture", "PHN2Zz4="),  # <svg> in base64
        ("picture", "iVBORw0KGgo="),  # a PNG's signature alone
        ("id", 7),
        ("answers", {"slm": {"right": "perhaps"}}),
        ("answers", {"slm": {"words": [["a", "shouted"]]}}),
        ("regions", [{"left": -0.1, "top": 0, "right": 1, "bottom": 1, "label": "cat"}]),
        ("regions", [{"left": 0, "top": 0, "right": 1, "bottom": float("nan"), "label": "cat"}]),
    ],
)
def test_what_is_no_exhibit_is_refused(key, value):
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's own words, or ours
        from_json([{**to_json([WHOLE])[0], key: value}])


def test_texts_and_regions_are_bounded():
    outside = Region(-1.0, 0.5, 2.0, 0.75, "x" * 100)
    words = (("w", "same"),) * 300
    long = Exhibit(
        "i" * 100, "t" * 700, "u" * 700, answers={"slm": Answer("a" * 700, words=words, regions=(outside,) * 101)}
    )
    (kept,) = bounded([long])
    answer = kept.answers["slm"]
    assert (len(kept.id), len(kept.text), len(kept.truth), len(answer.text)) == (80, 600, 600, 600)
    assert len(answer.words) == 201
    assert answer.words[-1] == ("…", "same")
    assert len(answer.regions) == 100
    assert answer.regions[0] == Region(0.0, 0.5, 1.0, 0.75, "x" * 53 + "…" + "x" * 26)


def test_pictures_that_are_too_much_together_are_left_out():
    size = len(PIXEL)
    pictures = [one.picture for one in bounded([Exhibit(str(k), picture=PIXEL) for k in range(3)], 2 * size)]
    assert pictures == [PIXEL, PIXEL, b""]


@pytest.mark.parametrize(
    ("size", "seen"),
    [((8, 8), (240, 240)), ((100, 50), (200, 100)), ((200, 10), (200, 10)), ((960, 480), (240, 120))],
)
def test_size_of_pictures(size, seen):
    png = picture(Image.new("L", size))
    assert Exhibit("", picture=png).size == seen
    assert Image.open(io.BytesIO(png)).size == seen


def test_values_become_images():
    gray = image_of([[[0.0, 0.5, 2.0]]])
    assert np.asarray(gray).tolist() == [[0, 128, 255]]
    color = image_of([[[1.0]], [[0.0]], [[float("nan")]]])
    assert color.getpixel((0, 0)) == (255, 0, 0)
    assert image_of(np.ones((2, 4, 4))).mode == "L"
