"""Noise, rooms and lines, with powers and places that can be told by hand."""

import numpy as np
import pytest

from fedcollm.data.sources.acoustics import NOISES, Scene, record

RATE, LENGTH = 1_000, 1_000
CLIP = np.full(200, 0.5, np.float32)
OTHERS = [np.full(100, 0.1, np.float32), np.full(50, -0.2, np.float32)]


def power(samples) -> float:
    return float(np.mean(np.square(samples, dtype=np.float64)))


@pytest.mark.parametrize("noise", NOISES)
def test_noise_has_the_power_that_the_ratio_says(noise):
    heard = record(CLIP, Scene(noise, 10.0), OTHERS, RATE, LENGTH, 3)
    apart = record(0 * CLIP + 1e-3, Scene(noise, -200.0), OTHERS, RATE, LENGTH, 3)  # the noise alone
    scale = np.dot(heard[200:], apart[200:]) / np.dot(apart[200:], apart[200:])
    speech = heard - scale * apart
    assert np.allclose(speech[200:], 0, atol=1e-4)
    assert power(speech[:200]) / power(scale * apart) == pytest.approx(10.0, rel=1e-3)
    assert np.abs(heard).max() == pytest.approx(0.9)


def test_same_seed_gives_the_same_samples_and_another_one_others():
    scene = Scene("babble", 5.0, echo_seconds=0.2)
    one, same, other = (record(CLIP, scene, OTHERS, RATE, LENGTH, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_speech_comes_first_and_may_fill_the_clip():
    heard = record(CLIP, Scene("white", 100.0), OTHERS, RATE, LENGTH, 0)
    assert heard[:200].min() > 0.8 > 0.01 > np.abs(heard[200:]).max()
    whole = record(np.ones(LENGTH, np.float32), Scene("white", 100.0), OTHERS, RATE, LENGTH, 0)
    assert whole.min() > 0.8


def test_line_carries_its_band_alone():
    times = np.arange(LENGTH) / RATE
    clip = (np.sin(2 * np.pi * 50 * times) + np.sin(2 * np.pi * 200 * times)).astype(np.float32)
    heard = record(clip, Scene("white", 100.0, band=(100.0, 300.0)), OTHERS, RATE, LENGTH, 0)
    spectrum = np.abs(np.fft.rfft(heard))  # one point per Hz
    assert spectrum[50] < 1e-3 * spectrum[200]


def test_room_adds_what_fades_after_the_speech():
    dry, wet = (
        record(CLIP, Scene("white", 100.0, echo_seconds=seconds), OTHERS, RATE, LENGTH, 0) for seconds in (0.0, 0.3)
    )
    assert power(dry[210:400]) < 1e-6 < power(wet[210:400])
    assert power(wet[600:]) < 1e-6
