"""Spectrograms of recordings, for people to look at."""

import math
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedcollm.modalities.audio.recordings import Reader, Recording
from fedcollm.modalities.exhibits import Exhibit
from fedcollm.modalities.pictures import picture

_POINTS, _RANGE = 512, 8.0  # length of the Fourier transform; powers of ten between the loudest and the background
_SIZE = (240, 120)

#: Colors from the background to the loudest, between which colors are interpolated.
_COLORS = ((17, 12, 45), (87, 24, 122), (182, 54, 121), (249, 135, 97), (252, 244, 181))


class Heard(Protocol):
    """An example that has a recording."""

    @property
    def id(self) -> str:
        """Id of the example."""
        ...

    @property
    def label(self) -> str | None:
        """Class or transcript."""
        ...

    @property
    def recording(self) -> Recording:
        """The recording."""
        ...


def heard_exhibit(example: Heard, reader: Reader) -> Exhibit:
    """Return the spectrogram of a recording, as a model hears it, and its label.

    Raises:
        UserError: the recording can't be used.
    """
    clip = reader.read(example.recording)
    text = f"Spectrogram, {len(clip) / reader.rate:.1f} s, 0 to {reader.rate / 2000:g} kHz"
    return Exhibit(example.id, text, example.label or "", picture(spectrogram(clip, reader.rate)))


def spectrogram(clip: Tensor, rate: int) -> Image.Image:
    """Return the spectrogram of a clip [T] in decibels, with time from left to right and frequency upwards in mel."""
    window = torch.hann_window(_POINTS)
    hop = max(len(clip) // (2 * _SIZE[0]), _POINTS // 8)
    spectrum = torch.stft(clip, _POINTS, hop, window=window, pad_mode="constant", return_complex=True)
    powers = spectrum.abs().square().clamp(min=1e-12).log10()  # [frequencies, frames]
    levels = ((powers - powers.max()) / _RANGE + 1).clamp(0, 1).numpy()[_rows(rate)]
    steps = np.linspace(0, 1, len(_COLORS))
    channels = [np.interp(levels, steps, [color[channel] for color in _COLORS]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)).resize(_SIZE, Image.Resampling.BILINEAR)


def _rows(rate: int) -> list[int]:
    """Return the frequency of each row of a picture from top to bottom, as an index of the Fourier transform."""
    highest = math.log1p(rate / 2 / 700)
    hertz = 700 * np.expm1(np.linspace(highest, 0, _SIZE[1]))
    return [round(float(value) * _POINTS / rate) for value in hertz]
