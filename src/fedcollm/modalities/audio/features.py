"""What models of audio read instead of samples: log-mel spectrograms, or what a model's own feature extractor makes."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedcollm.errors import UserError
from fedcollm.models.pretrained import from_pretrained, transformers_class

_WINDOW, _HOP, _POINTS = 400, 160, 512  # 25 ms, 10 ms, and the length of the Fourier transform, at 16 kHz
_FLOOR = 1e-8  # power below which nothing is heard


class Features(Protocol):
    """Turns clips into a model's inputs.

    Attributes:
        rate: the sampling rate in Hz that it needs.
        longest: the longest clip that it takes, in seconds.
        options: plain values that the inputs depend on, for cache keys.
    """

    rate: int
    longest: float
    options: Mapping[str, Any]

    def __call__(self, clips: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the keyword arguments of a forward pass, given clips [T_i] at `rate`."""
        ...


class LogMel:
    """Log-mel spectrograms of 16 kHz audio with a fixed number of frames; each has a mean of 0 and a variance of 1.

    Args:
        bands: number of mel bands.
        frames: number of frames of 10 ms; a shorter clip gets silence at its end.
    """

    def __init__(self, bands: int, frames: int):
        self.rate: int = 16_000
        self.bands: int = bands
        self.frames: int = frames
        self.longest: float = frames * _HOP / 16_000
        self.options: Mapping[str, Any] = {"features": "log-mel", "bands": bands, "frames": frames}

    def __call__(self, clips: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return `input_values`, [B, frames, bands] float32."""
        values = self.powers(clips)
        mean, spread = values.mean((1, 2), keepdim=True), values.std((1, 2), keepdim=True)
        return {"input_values": (values - mean) / (spread + 1e-5)}

    def powers(self, clips: Sequence[Tensor]) -> Tensor:
        """Return the decimal logarithms of the power in each band, [B, frames, bands]."""
        length = self.frames * _HOP
        padded = torch.stack([functional.pad(clip[:length], (0, length - len(clip[:length]))) for clip in clips])
        spectra = torch.stft(
            padded, _POINTS, _HOP, _WINDOW, torch.hann_window(_WINDOW), pad_mode="constant", return_complex=True
        )
        powers = spectra.abs().square()[..., : self.frames].transpose(1, 2)  # [B, frames, points / 2 + 1]
        return (powers @ _filters(self.bands)).clamp(min=_FLOOR).log10()


@cache
def _filters(bands: int) -> Tensor:
    """Return [_POINTS / 2 + 1, bands], the weight of each frequency in each mel band."""
    from transformers.audio_utils import mel_filter_bank  # takes seconds

    make: Any = mel_filter_bank
    filters = make(_POINTS // 2 + 1, bands, 60.0, 7_600.0, 16_000, norm="slaney", mel_scale="htk")
    return torch.tensor(np.asarray(filters), dtype=torch.float32)


class Extractor:
    """The feature extractor in a model's directory.

    Args:
        source: the directory, or a hub id.
        longest: the longest clip in seconds, if the extractor itself has no limit.

    Attributes:
        own: the extractor of transformers.

    Raises:
        UserError: there is no feature extractor, or it can't be loaded.
    """

    def __init__(self, source: str, longest: float = 30.0):
        files = ("preprocessor_config.json", "processor_config.json")  # the second one is that of a whole processor
        if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in files):
            raise UserError(
                f"model source {source!r} has no preprocessor_config.json, which says what the model reads. Save the "
                "model's feature extractor there too."
            )
        self.own: Any = from_pretrained(transformers_class("AutoFeatureExtractor"), source)
        self.rate: int = int(self.own.sampling_rate)
        self.longest: float = float(getattr(self.own, "chunk_length", longest))
        self.options: Mapping[str, Any] = {"features": cast(Mapping[str, Any], self.own.to_dict())}

    def __call__(self, clips: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return what the extractor makes of the clips, with padding if it does not pad by itself."""
        arrays = [clip.numpy() for clip in clips]
        settings: dict[str, Any] = {"sampling_rate": self.rate, "return_tensors": "pt"}
        if "pad" in dir(self.own) and not hasattr(self.own, "num_mel_bins"):
            settings |= {"padding": "max_length" if hasattr(self.own, "chunk_length") else True}
        return dict(self.own(arrays, **settings))
