"""Recordings in WAV, FLAC, OGG or MP3 files: read with soundfile, mixed to mono, and resampled with soxr.

A recording is decoded when it is needed, so that only the encoded bytes, or a path, and a bounded number of decoded
samples stay in memory. What can't be heard as it was meant is refused: a file that is missing, empty, no audio,
truncated, not finite, absurdly loud, in another container, or whose header claims a sampling rate, channels or a
duration that no clip has. The header is checked before anything is decoded. What can be used all the same is used, by
one rule each, and counted (`Reader.notes`): several channels are averaged, another sampling rate is converted, a clip
that is too long is cut off at its end, one that is too short gets silence at its end, and a silent one stays as it is.
"""

import hashlib
import importlib
import io
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcollm.errors import UserError
from fedcollm.modalities.audio.containers import FORMATS, is_cut_short

#: Bounds on what a header may claim.
SLOWEST_RATE, FASTEST_RATE, MOST_CHANNELS, LONGEST_SECONDS, MOST_BYTES = 1_000, 384_000, 16, 3_600.0, 2**29

#: A recording whose samples all stay below this share of full scale, -80 dB, is silent.
SILENCE = 1e-4

#: Largest sample, as a multiple of full scale: beyond it, floating-point samples are on another scale, or damaged.
LOUDEST = 1e4

_BLOCK = 2**16  # frames that are decoded at once
_UNKNOWN = 2**62  # libsndfile says 2**63 - 1 frames for a FLAC file that does not tell its length
_KEPT_BYTES = 2**27  # decoded samples that a reader keeps


def audio_package(name: str) -> Any:
    """Import a package that only audio needs.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"audio needs the package {name}. Run: pip install 'fedcollm[audio]'") from error


@dataclass(frozen=True)
class Facts:
    """What a recording's bytes and header say.

    Attributes:
        rate: sampling rate in Hz.
        channels: number of channels.
        frames: number of samples per channel.
        digest: SHA-256 of the encoded bytes, in hexadecimal.
    """

    rate: int
    channels: int
    frames: int
    digest: str

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.frames / self.rate


@dataclass(frozen=True, eq=False)
class Recording:
    """An encoded recording, which is read only when needed.

    Attributes:
        source: a file, or its bytes.
        name: what messages call it; by default the path.
    """

    source: Path | bytes = field(repr=False)
    name: str = ""

    def encoded(self) -> bytes:
        """Return the encoded bytes.

        Raises:
            UserError: the file can't be read, or is larger than `MOST_BYTES`.
        """
        if isinstance(self.source, bytes):
            return self.source
        try:
            size = self.source.stat().st_size
            if size > MOST_BYTES:
                raise UserError(f"{self.label}: {size} bytes are more than {MOST_BYTES}. Cut it into clips.")
            return self.source.read_bytes()
        except OSError as error:
            raise UserError(
                f"{self.label}: the recording can't be read ({error.strerror}). Correct its path."
            ) from error

    @property
    def label(self) -> str:
        """What messages call this recording."""
        return self.name or (str(self.source) if isinstance(self.source, Path) else "a recording")

    def to_wire(self) -> dict[str, Any]:
        """Return plain values for cache keys; the digest stands for the samples."""
        return {"digest": self.facts.digest}

    @cached_property
    def facts(self) -> Facts:
        """What the header says, checked.

        Raises:
            UserError: the file is missing, empty, no audio or truncated, or the header claims what no clip has.
        """
        data = self.encoded()
        if is_cut_short(data):
            raise UserError(f"{self.label}: the recording is truncated: its end is missing. Restore it, or remove it.")
        with _opened(data, self.label) as file:
            kind, rate, channels, frames = str(file.format), int(file.samplerate), int(file.channels), int(file.frames)
        if kind not in FORMATS:
            raise UserError(
                f"{self.label}: the recording has the format {kind}, which is not read. Convert it to WAV, FLAC, OGG "
                "or MP3."
            )
        if reason := _absurdity(rate, channels, frames):
            raise UserError(f"{self.label}: {reason}. Correct the recording, or remove it.")
        return Facts(rate, channels, frames, hashlib.sha256(data).hexdigest())

    def mono(self, seconds: float = LONGEST_SECONDS) -> NDArray[np.float32]:
        """Return the samples from the start up to so many seconds, averaged over channels, at their own rate: [T].

        Raises:
            UserError: as `facts`, or fewer samples can be decoded than the header claims, or one is not finite, or
                more than `LOUDEST` times full scale.
        """
        facts = self.facts
        wanted = min(facts.frames, math.ceil(seconds * facts.rate))
        blocks: list[NDArray[np.float32]] = []
        try:
            with _opened(self._unchanged(), self.label) as file:
                while (missing := wanted - sum(map(len, blocks))) > 0:
                    block = file.read(min(missing, _BLOCK), dtype="float32", always_2d=True)
                    if not len(block):
                        raise UserError(
                            f"{self.label}: the recording is truncated: {wanted - missing} of {facts.frames} samples "
                            "can be decoded. Restore it, or remove it."
                        )
                    self._check_samples(block)
                    blocks.append(block.mean(axis=1))
        except RuntimeError as error:  # soundfile's own errors
            raise UserError(
                f"{self.label}: the recording is truncated or damaged ({error}). Restore it, or remove it."
            ) from error
        return np.concatenate(blocks)

    def _check_samples(self, block: NDArray[np.float32]) -> None:
        if not np.isfinite(block).all():
            raise UserError(f"{self.label}: a sample is not a finite number. Correct the recording, or remove it.")
        if (loudest := float(np.abs(block).max())) > LOUDEST:
            raise UserError(
                f"{self.label}: a sample of {loudest:.4g} is more than {LOUDEST:,.0f} times full scale, which is 1. "
                "Divide the samples by their full scale, or remove the recording."
            )

    def _unchanged(self) -> bytes:
        """Return the encoded bytes; raise UserError if the file is not the one any more that was read at first."""
        data = self.encoded()
        if not isinstance(self.source, bytes) and hashlib.sha256(data).hexdigest() != self.facts.digest:
            raise UserError(
                f"{self.label}: the recording has changed since the run began. Put the file back, or start a new run."
            )
        return data


class Reader:
    """Reads recordings as a model takes them, and counts what it had to change.

    Args:
        rate: the model's sampling rate in Hz.
        longest: the longest clip that the model takes, in seconds; longer ones are cut off at their end.
        shortest: the shortest one; shorter ones get silence at their end.
    """

    def __init__(self, rate: int = 16_000, longest: float = 30.0, shortest: float = 0.1):
        self.rate: int = rate
        self.longest: float = longest
        self.shortest: float = shortest
        self._seen: dict[str, set[str]] = {}
        self._kept: dict[str, Tensor] = {}
        self._room = _KEPT_BYTES

    @property
    def most(self) -> int:
        """Number of samples of the longest clip."""
        return round(self.longest * self.rate)

    def size(self, recording: Recording) -> int:
        """Return the number of samples that `read` returns, give or take one, from the header alone."""
        return min(self.most, max(round(recording.facts.seconds * self.rate), round(self.shortest * self.rate)))

    def read(self, recording: Recording) -> Tensor:
        """Return [T] float32, the samples of a recording at the model's rate, between -1 and 1 for usual files.

        Raises:
            UserError: the recording can't be used, as the module says.
        """
        digest = recording.facts.digest
        if digest in self._kept:
            return self._kept[digest]
        samples = self._decoded(recording)
        if samples.nbytes <= self._room:
            self._room -= samples.nbytes
            self._kept[digest] = samples
        return samples

    def _decoded(self, recording: Recording) -> Tensor:
        facts, samples = recording.facts, recording.mono(self.longest)
        if facts.rate != self.rate:
            samples = audio_package("soxr").resample(samples, facts.rate, self.rate)[: self.most]
        short = round(self.shortest * self.rate) - len(samples)
        rules = {
            "mono": facts.channels > 1,
            "resampled": facts.rate != self.rate,
            "cut": facts.seconds > self.longest,
            "padded": short > 0,
            "silent": not (np.abs(samples) >= SILENCE).any(),
        }
        for rule, applies in rules.items():
            if applies:
                self._seen.setdefault(rule, set()).add(facts.digest)
        return torch.tensor(np.pad(samples, (0, max(short, 0))), dtype=torch.float32)

    def notes(self) -> list[str]:
        """Return one sentence per rule that was applied, with the number of distinct recordings."""
        said = {
            "mono": "with several channels: they are averaged",
            "resampled": f"with another sampling rate: they are resampled to {self.rate} Hz",
            "cut": f"longer than {self.longest:g} s: they are cut off there",
            "padded": f"shorter than {self.shortest:g} s: they get silence at their end",
            "silent": "without any sound: they are used as they are",
        }
        return [f"recordings {words}: {len(self._seen[rule])}" for rule, words in said.items() if rule in self._seen]


def _opened(data: bytes, label: str) -> Any:
    """Return an open file of soundfile.

    Raises:
        UserError: the bytes are empty or no audio.
    """
    if not data:
        raise UserError(f"{label}: the recording has zero bytes. Restore it, or remove it.")
    soundfile = audio_package("soundfile")
    try:
        return soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError as error:
        raise UserError(
            f"{label}: can't be read as audio ({error.error_string.rstrip('.')}). Give a WAV, FLAC, OGG or MP3 file."
        ) from error


def _absurdity(rate: int, channels: int, frames: int) -> str | None:
    """Return what in a header no clip has; None if nothing is odd."""
    if not SLOWEST_RATE <= rate <= FASTEST_RATE:
        return f"a sampling rate of {rate} Hz is not from {SLOWEST_RATE} to {FASTEST_RATE}"
    if not 1 <= channels <= MOST_CHANNELS:
        return f"{channels} channels are not from 1 to {MOST_CHANNELS}"
    if frames >= _UNKNOWN:
        return "the length is unknown, since the header leaves it out, as a streaming encoder does"
    if frames < 1:
        return "the recording has no samples"
    if frames > LONGEST_SECONDS * rate:
        return f"a duration of {frames / rate:.4g} s is more than {LONGEST_SECONDS:g} s"
    return None
