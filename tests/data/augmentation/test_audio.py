"""Augmentations of recordings, by hand."""

import numpy as np
import pytest
from tests.data.augmentation.fixed import Fixed
from tests.modalities.audio.clips import FirstSample, constant, tone

from fedcollm.data.augmentation.audio import (
    AudioBatches,
    ChangedReader,
    frequency_mask,
    gain,
    noise,
    shift,
    speed,
    time_mask,
)  # fmt: skip
from fedcollm.data.augmentation.draws import Draws
from fedcollm.modalities.audio.classification import AudioExample, AudioTask
from fedcollm.modalities.audio.recordings import Reader

RATE = 100
RAMP = np.arange(1, 101, dtype=np.float32)


def loudness(clip: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(clip))))


def test_shift_moves_up_to_a_tenth_of_a_second_and_fills_with_silence():
    assert shift(RAMP, RATE, 1.0, Fixed(1)).tolist() == [0.0] * 10 + RAMP[:90].tolist()
    assert shift(RAMP, RATE, 1.0, Fixed(0)).tolist() == RAMP[10:].tolist() + [0.0] * 10
    assert shift(RAMP, RATE, 1.0, Fixed(0.5)).tolist() == RAMP.tolist()


def test_gain_is_six_decibels_at_most():
    assert gain(RAMP, RATE, 1.0, Fixed(1))[0] == pytest.approx(1.9952623)
    assert gain(RAMP, RATE, 1.0, Fixed(0))[0] == pytest.approx(0.5011872)


def test_noise_has_the_stated_power():
    # the lower end: 10 dB below the clip, a tenth of its power
    added = noise(RAMP, RATE, 1.0, Fixed(0)) - RAMP
    assert loudness(added) / loudness(RAMP) == pytest.approx(0.1**0.5, abs=1e-4)
    louder = noise(RAMP, RATE, 2.0, Fixed(0)) - RAMP
    assert loudness(louder) / loudness(RAMP) == pytest.approx(2 * 0.1**0.5, abs=1e-4)
    assert not noise(0 * RAMP, RATE, 1.0, Fixed(0)).any()  # silence stays silent


def test_time_mask_silences_a_tenth_at_most():
    made = time_mask(RAMP, RATE, 1.0, Fixed(1))
    assert made.tolist() == RAMP[:90].tolist() + [0.0] * 10
    assert time_mask(RAMP, RATE, 1.0, Fixed(0)).tolist() == RAMP.tolist()


def test_frequency_mask_removes_a_band_and_nothing_else():
    seconds = np.arange(8_000) / 8_000
    low, high = (np.sin(2 * np.pi * hertz * seconds).astype(np.float32) for hertz in (300, 3_900))
    # the upper end is the highest eighth of the mel scale: from 2,971 to 4,000 Hz
    made = frequency_mask(low + high, 8_000, 1.0, Fixed(1))
    assert np.allclose(made, low, atol=1e-3)


def test_speed_changes_duration_and_pitch():
    seconds = np.arange(11_000) / 11_000
    made = speed(np.sin(2 * np.pi * 440 * seconds).astype(np.float32), 11_000, 1.0, Fixed(1))
    assert len(made) == 10_000
    assert np.abs(np.fft.rfft(made)).argmax() == 440  # periods, now in 10,000 samples


def test_reader_keeps_clips_as_they_are_and_says_how_long_they_become():
    reader, clip = Reader(longest=0.5), tone(440, 0.4)
    read = reader.read(clip)
    for seed in range(4):
        made = ChangedReader(reader, Draws({"speed": 1.0, "gain": 1.0}, 1.0, seed, 0))
        assert len(made.read(clip)) == pytest.approx(made.size(clip), abs=1)
        assert len(made.read(clip)) != 6_400
        assert made.read(clip).tolist() == made.read(clip).tolist()
    assert reader.read(clip) is read
    assert ChangedReader(reader, Draws({"speed": 1.0}, 3.0, 0, 0)).size(tone(440, 0.5)) <= 8_000


def test_batches_have_changed_clips():
    task = AudioTask("words", ("yes", "no"), FirstSample())
    one = AudioExample("1", constant(0.5), "no")
    batches = AudioBatches(task, Draws({"gain": 1.0}, 1.0, 0, 0))
    batch = batches.collate([one])
    assert batch.targets.tolist() == [1]
    assert batch.clips[0][0].item() != 0.5
    assert batches.size(one) == 1_600
    assert task.collate([one]).clips[0][0].item() == pytest.approx(0.5, abs=1e-4)
