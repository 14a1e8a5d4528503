"""Augmentations of recordings: a function each, listed in `AUDIO`.

They are applied to samples, whatever a model makes of them: a band that SpecAugment masks in the spectrogram is removed
from the sound instead. Speed is that of Ko et al. (2015), masks are those of Park et al. (arXiv 1904.08779).
"""

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcollm.data.augmentation.draws import Draws
from fedcollm.modalities.audio.classification import AudioTask
from fedcollm.modalities.audio.recordings import Reader, Recording, audio_package
from fedcollm.modalities.audio.speech import SpeechTask

Samples = NDArray[np.float32]
Change = Callable[[Samples, int, float, random.Random], Samples]

#: Largest change of speed, as a share; largest shift in seconds; largest gain in decibels.
_SPEED, _SHIFT_SECONDS, _GAIN = 0.1, 0.1, 6.0

#: Signal-to-noise ratios in decibels, at a strength of 1.
_NOISE = (10.0, 30.0)

#: Largest share of a clip that is silenced, and of the mel scale that is removed.
_TIME_MASK, _FREQUENCY_MASK = 0.1, 0.125


def speed(clip: Samples, rate: int, strength: float, draw: random.Random) -> Samples:
    """Return a clip that is played faster, and higher, or slower, and lower."""
    return _faster(clip, rate, speed_factor(strength, draw))


def shift(clip: Samples, rate: int, strength: float, draw: random.Random) -> Samples:
    """Return a clip that begins earlier or later; silence fills the gap, and what is moved out of the clip is lost."""
    most = min(round(_SHIFT_SECONDS * strength * rate), len(clip) // 2)
    by, moved = draw.randint(-most, most), np.zeros_like(clip)
    if by >= 0:
        moved[by:] = clip[: len(clip) - by]
    else:
        moved[:by] = clip[-by:]
    return moved


def noise(clip: Samples, rate: int, strength: float, draw: random.Random) -> Samples:
    """Return a clip with noise between white and pink, of a power relative to that of the clip."""
    ratio = draw.uniform(*_NOISE) - 20 * np.log10(strength)
    slope = draw.uniform(0.0, 1.0)
    spectrum = np.fft.rfft(np.random.default_rng(draw.getrandbits(32)).standard_normal(len(clip)))
    made = np.fft.irfft(spectrum * np.arange(1, len(spectrum) + 1) ** (-slope / 2), len(clip))
    loudness = float(np.sqrt(np.mean(clip.astype(np.float64) ** 2)))
    scale = loudness * 10 ** (-ratio / 20) / max(float(np.sqrt(np.mean(made**2))), 1e-12)
    return (clip + scale * made).astype(np.float32)


def gain(clip: Samples, rate: int, strength: float, draw: random.Random) -> Samples:
    """Return a clip that is louder or softer."""
    return clip * np.float32(10 ** (draw.uniform(-_GAIN, _GAIN) * strength / 20))


def time_mask(clip: Samples, rate: int, strength: float, draw: random.Random) -> Samples:
    """Return a clip in which a stretch is silent."""
    length = round(draw.uniform(0, min(_TIME_MASK * strength, 0.5)) * len(clip))
    start = draw.randint(0, len(clip) - length)
    masked = clip.copy()
    masked[start : start + length] = 0
    return masked


def frequency_mask(clip: Samples, rate: int, strength: float, draw: random.Random) -> Samples:
    """Return a clip from which a band of the mel scale is removed."""
    highest = np.log1p(rate / 2 / 700)
    width = draw.uniform(0, min(_FREQUENCY_MASK * strength, 0.5)) * highest
    lowest = draw.uniform(0, highest - width)
    spectrum, mels = np.fft.rfft(clip), np.log1p(np.fft.rfftfreq(len(clip), 1 / rate) / 700)
    spectrum[(mels >= lowest) & (mels < lowest + width)] = 0
    return np.fft.irfft(spectrum, len(clip)).astype(np.float32)


#: Name to function, in the order in which they are applied.
AUDIO: Mapping[str, Change] = {
    "speed": speed,
    "shift": shift,
    "noise": noise,
    "gain": gain,
    "time_mask": time_mask,
    "frequency_mask": frequency_mask,
}


def speed_factor(strength: float, draw: random.Random) -> float:
    """Return by what `speed` divides the duration of a clip."""
    return 1 + draw.uniform(-_SPEED, _SPEED) * strength


def _faster(clip: Samples, rate: int, factor: float) -> Samples:
    return np.asarray(audio_package("soxr").resample(clip, rate * factor, rate), dtype=np.float32)


class ChangedReader(Reader):
    """Reads recordings as they are in one epoch. Decoded samples are kept by the reader that it is made of.

    Args:
        reader: reads recordings as they are in the data.
        draws: the augmentations of the epoch.
    """

    def __init__(self, reader: Reader, draws: Draws):
        super().__init__(reader.rate, reader.longest, reader.shortest)
        self._reader = reader
        self._draws = draws

    def size(self, recording: Recording) -> int:
        """Return the number of samples that `read` returns, give or take one."""
        size = self._reader.size(recording)
        for name, draw in self._draws.of(recording.facts.digest, {"speed": speed}):
            size = round(size / speed_factor(self._draws.strength, draw)) if name == "speed" else size
        return min(max(size, round(self.shortest * self.rate)), self.most)

    def read(self, recording: Recording) -> Tensor:
        """Return [T] float32, the changed samples at the model's rate.

        Raises:
            UserError: the recording can't be used.
        """
        clip = self._reader.read(recording)
        made: Samples = clip.numpy()
        for name, draw in self._draws.of(recording.facts.digest, AUDIO):
            made = AUDIO[name](made, self.rate, self._draws.strength, draw)
        short = max(round(self.shortest * self.rate) - len(made), 0)
        return torch.tensor(np.pad(made[: self.most], (0, short)), dtype=torch.float32)


class AudioBatches:
    """Makes batches of recordings as they are in one epoch.

    Args:
        task: the modality.
        draws: the augmentations of the epoch.
    """

    def __init__(self, task: AudioTask | SpeechTask, draws: Draws):
        self._task: Any = copy.copy(task)
        self._task.reader = ChangedReader(task.reader, draws)

    def size(self, example: Any) -> int:
        """Return the number of samples of the changed clip."""
        return self._task.size(example)

    def collate(self, examples: Sequence[Any]) -> Any:
        """Return a batch of changed clips."""
        return self._task.collate(examples)
