"""Recordings for tests: tones as FLAC files, and models of one layer."""

import io
from types import SimpleNamespace

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from fedcollm.modalities.audio.recordings import Recording


def constant(value: float, samples: int = 1_600) -> Recording:
    """A clip whose samples are all the same."""
    return recorded(np.full(samples, value))


def tone(hertz: float, seconds: float = 0.5, rate: int = 16_000) -> Recording:
    """A clip of one note."""
    return recorded(0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate), rate)


def recorded(samples, rate: int = 16_000) -> Recording:
    file = io.BytesIO()
    soundfile.write(file, np.asarray(samples, dtype=np.float32), rate, format="FLAC")
    return Recording(file.getvalue(), "clip")


class FirstSample:
    """Features for models that read the first sample of each clip alone, times a factor."""

    def __init__(self, factor: float = 1.0, rate: int = 16_000):
        self.rate, self.longest, self.factor, self.options = rate, 1.0, factor, {"factor": factor}

    def __call__(self, clips) -> dict[str, Tensor]:
        return {"input_values": self.factor * torch.stack([clip[:1] for clip in clips])}


class Scaled(nn.Module):
    """Logits are the inputs times a vector."""

    def __init__(self, weights: list[float], dtype: torch.dtype = torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weights, dtype=dtype))

    def forward(self, input_values):
        assert input_values.dtype == self.weight.dtype
        return SimpleNamespace(logits=input_values * self.weight)
