"""Images and recordings: each odd one among ordinary ones."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from fedcollm.data.audit.findings import Fix, Record, Subject
from fedcollm.data.audit.images import images
from fedcollm.data.audit.sounds import sounds


def drawing(seed):
    """A picture of random rectangles."""
    draw = np.random.default_rng(seed)
    picture = Image.new("RGB", (64, 64), (200, 200, 200))
    for _ in range(12):
        x, y = draw.integers(0, 50, 2).tolist()
        color = tuple(draw.integers(0, 255, 3).tolist())
        ImageDraw.Draw(picture).rectangle((x, y, x + 14, y + 14), fill=color)
    return picture


def png(picture):
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def found(finder, kind, *sources, labels=None):
    records = [
        Record(None, i, f"row {i}", "", None if labels is None else labels[i], source=source)
        for i, source in enumerate(sources)
    ]
    return [(one.kind, one.record, one.fix) for one in finder(Subject(kind, records))]


def test_ordinary_images_have_no_findings():
    assert found(images, "image_files", *(png(drawing(i)) for i in range(12))) == []


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (lambda one: one.point(lambda value: value // 5), ["dark"]),
        (lambda one: one.filter(ImageFilter.GaussianBlur(5)), ["blurry"]),
        (lambda one: Image.new("RGB", (64, 64), "white"), ["bright", "plain"]),
        (lambda one: Image.new("RGB", (64, 64), (128, 128, 128)), ["plain"]),
        (lambda one: one.resize((300, 30)), ["size"]),
    ],
)
def test_odd_images(change, kinds):
    some = [png(drawing(i)) for i in range(11)]
    assert [(kind, i) for kind, i, _ in found(images, "image_files", *some, png(change(drawing(99))))] == [
        (kind, 11) for kind in kinds
    ]


def test_broken_and_repeated_images():
    one, scaled = drawing(1), drawing(1).resize((80, 80))
    sources = [png(one), b"no image", png(one), png(scaled), png(drawing(2))]
    assert found(images, "image_files", *sources, labels=["a", "a", "a", "a", "a"]) == [
        ("unreadable", 1, Fix("drop")),
        ("duplicate", 2, Fix("drop")),
        ("near_duplicate", 3, Fix("drop")),
    ]
    assert found(images, "image_files", png(one), png(one), labels=["a", "b"]) == [("conflict", 1, None)]


def tone(hertz, seconds=0.5, level=0.5):
    """A tone whose loudness falls."""
    times = np.arange(int(8000 * seconds)) / 8000
    return (level * np.sin(2 * np.pi * hertz * times) * np.exp(-3 * times)).astype(np.float32)


def wav(samples):
    soundfile = pytest.importorskip("soundfile")
    stream = io.BytesIO()
    soundfile.write(stream, samples, 8000, format="WAV", subtype="PCM_16")
    return stream.getvalue()


def test_odd_recordings():
    loud = np.clip(4 * tone(300), -0.9, 0.9)
    sources = [
        *(wav(tone(200 * i)) for i in range(1, 5)),
        wav(np.zeros(4000)),
        wav(loud),
        wav(tone(500, seconds=0.05)),
        b"no sound",
    ]
    assert found(sounds, "audio_files", *sources) == [
        ("unreadable", 7, Fix("drop")),
        ("silent", 4, Fix("drop")),
        ("clipped", 5, None),
        ("short", 6, None),
    ]


def test_repeated_recordings():
    noisy = tone(200) + np.random.default_rng(0).normal(0, 1e-4, 4000).astype(np.float32)
    sources = [wav(tone(200)), wav(tone(200)), wav(noisy), wav(tone(700))]
    assert [(kind, i) for kind, i, _ in found(sounds, "audio_files", *sources)] == [
        ("duplicate", 1),
        ("near_duplicate", 2),
    ]
