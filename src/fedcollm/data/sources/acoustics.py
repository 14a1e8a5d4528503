"""Rooms, lines and noise for clean clips: what makes the recordings of one client unlike those of another.

Everything is computed with NumPy from a generator that the caller seeds, so that the same clips come out again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]

#: Largest magnitude of a finished clip.
_PEAK = 0.9


@dataclass(frozen=True)
class Scene:
    """Where clips are recorded.

    Attributes:
        noise: a key of `NOISES`.
        ratio_db: power of the speech over that of the noise, in decibels, both over the duration of the speech.
        echo_seconds: time in which the sound of the room fades by 60 dB; 0 for no room.
        band: lowest and highest frequency in Hz that the line carries; None for all.
    """

    noise: str
    ratio_db: float
    echo_seconds: float = 0.0
    band: tuple[float, float] | None = None


def record(clip: Samples, scene: Scene, others: Sequence[Samples], rate: int, length: int, seed: int) -> Samples:
    """Return a clip as it is heard in a scene, at the beginning of `length` samples of noise.

    Args:
        clip: [T] samples of speech, with T at most `length`.
        scene: the room, the line and the noise.
        others: clips of other speech, of which babble is made.
        rate: sampling rate in Hz.
        length: number of samples to return.
        seed: seed of all that is random.

    Returns:
        [length] samples, of which the largest has a magnitude of 0.9.
    """
    draw = np.random.default_rng(seed)
    placed = np.pad(clip, (0, length - len(clip)))
    heard = _echoed(placed, scene.echo_seconds, rate, draw)
    noise = NOISES[scene.noise](draw, length, rate, others)
    speech_power = float(np.mean(np.square(heard[: len(clip)], dtype=np.float64)))
    noise_power = float(np.mean(np.square(noise, dtype=np.float64)))
    factor = np.sqrt(speech_power / max(noise_power, 1e-12) / 10 ** (scene.ratio_db / 10))
    mixed = _within(heard + factor * noise, scene.band, rate)
    return (_PEAK * mixed / max(float(np.abs(mixed).max()), 1e-12)).astype(np.float32)


def _echoed(samples: Samples, seconds: float, rate: int, draw: np.random.Generator) -> Samples:
    """Return samples in a room: convolved with noise that decays by 60 dB in so many seconds (Moorer 1979)."""
    if not seconds:
        return samples
    times = np.arange(round(seconds * rate)) / rate
    answer = draw.standard_normal(len(times)) * 10 ** (-3 * times / seconds)
    answer /= np.sqrt(np.square(answer).sum())
    answer[0] += 1.0  # what arrives straight
    points = len(samples) + len(answer) - 1
    product = np.fft.irfft(np.fft.rfft(samples, points) * np.fft.rfft(answer, points), points)
    return product[: len(samples)].astype(np.float32)


def _within(samples: Samples, band: tuple[float, float] | None, rate: int) -> Samples:
    """Return samples without what is outside of a band."""
    if band is None:
        return samples
    spectrum, frequencies = np.fft.rfft(samples), np.fft.rfftfreq(len(samples), 1 / rate)
    spectrum[(frequencies < band[0]) | (frequencies > band[1])] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def _white(draw: np.random.Generator, length: int, rate: int, others: Sequence[Samples]) -> Samples:
    return draw.standard_normal(length).astype(np.float32)


def _pink(draw: np.random.Generator, length: int, rate: int, others: Sequence[Samples]) -> Samples:
    """Return noise whose power falls with frequency, as in traffic."""
    spectrum = np.fft.rfft(draw.standard_normal(length))
    spectrum /= np.sqrt(np.maximum(np.fft.rfftfreq(length, 1 / rate), 50.0))
    return np.fft.irfft(spectrum, length).astype(np.float32)


def _hum(draw: np.random.Generator, length: int, rate: int, others: Sequence[Samples]) -> Samples:
    """Return the first 20 harmonics of a machine that turns 90 to 130 times per second, with random phases."""
    base, times = draw.uniform(90, 130), np.arange(length) / rate
    waves = [np.sin(2 * np.pi * (base * k * times + draw.uniform())) / np.sqrt(k) for k in range(1, 21)]
    return np.sum(waves, axis=0).astype(np.float32)


def _babble(draw: np.random.Generator, length: int, rate: int, others: Sequence[Samples]) -> Samples:
    """Return six other clips at random places, which wrap around at the end."""
    total = np.zeros(length, np.float32)
    for choice in draw.integers(len(others), size=6):
        clip = others[int(choice)][:length]
        total += np.roll(np.pad(clip, (0, length - len(clip))), int(draw.integers(length)))
    return total


#: Name of a noise to what makes it, given a generator, a number of samples, their rate, and clips of other speech.
NOISES: Mapping[str, Callable[[np.random.Generator, int, int, Sequence[Samples]], Samples]] = {
    "white": _white,
    "pink": _pink,
    "hum": _hum,
    "babble": _babble,
}
