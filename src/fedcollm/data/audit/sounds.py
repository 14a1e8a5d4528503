"""Find recordings that are unreadable, silent, clipped, too short, or there twice."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcollm.data.audit.duplicates import as_findings
from fedcollm.data.audit.findings import Finding, Fix, Subject
from fedcollm.errors import UserError
from fedcollm.modalities.audio.recordings import SILENCE
from fedcollm.progress import track

#: A recording is clipped if more than this share of its samples stand in runs of at least so many at its very peak,
#: which is at least this share of full scale.
_CLIPPED, _RUN, _PEAK = 0.002, 4, 0.2

#: Shortest recording in seconds, and as a share of the median one.
_SHORTEST, _SHORT = 0.1, 0.2

#: Bands and parts in time of a fingerprint, and the similarity from which two recordings are near duplicates.
_BANDS, _PARTS, _SIMILAR = 32, 16, 0.995


@dataclass(frozen=True)
class _Heard:
    """What is measured of a recording.

    Attributes:
        seconds: its duration.
        peak: its largest sample, as a share of full scale.
        clipped: share of its samples that stand in runs at its peak.
        digest: of the samples.
        spectrum: [bands * parts] how loud each band is in each part, with a mean of 0 and a norm of 1.
    """

    seconds: float
    peak: float
    clipped: float
    digest: str
    spectrum: NDArray[np.float32]


def sounds(subject: Subject) -> Iterator[Finding]:
    """Yield what is odd about the recordings."""
    heard: dict[int, _Heard] = {}
    for i, record in enumerate(track(subject.records, "listening to recordings", total=len(subject.records))):
        if record.fault:
            continue
        try:
            heard[i] = _hear(*record.sound())
        except UserError as error:
            yield Finding("unreadable", i, str(error).removeprefix(f"{record.place}: "), fix=Fix("drop"))
    median = float(np.median([one.seconds for one in heard.values()])) if heard else 0.0
    for i, one in heard.items():
        if one.peak < SILENCE:
            yield Finding(
                "silent", i, f"the loudest sample is at {100 * one.peak:.2g} % of full scale", fix=Fix("drop")
            )
        elif one.clipped > _CLIPPED:
            yield Finding("clipped", i, f"{100 * one.clipped:.1f} % of the samples are cut off at the peak")
        if one.seconds < max(_SHORTEST, _SHORT * median):
            yield Finding("short", i, f"{one.seconds:.2f} s; the median is {median:.2f} s")
    yield from as_findings(subject.records, _alike(heard))


def _hear(samples: NDArray[np.float32], rate: int) -> _Heard:
    peak = float(np.abs(samples).max())
    digest = hashlib.sha256(samples.tobytes() + str(rate).encode()).hexdigest()
    return _Heard(len(samples) / rate, peak, _clipped(samples, peak), digest, spectrum(samples))


def _clipped(samples: NDArray[np.float32], peak: float) -> float:
    """Return the share of samples in runs at the peak; 0 for a recording so quiet that its peak has few steps."""
    if peak < _PEAK:
        return 0.0
    at_peak = np.concatenate([[False], np.abs(samples) >= 0.999 * peak, [False]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(at_peak))
    runs = edges[1::2] - edges[::2]
    return float(runs[runs >= _RUN].sum() / len(samples))


def spectrum(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how loud each band is in each part of a recording: [bands * parts], with a mean of 0 and a norm of 1.

    Loudness and sampling rate of the whole recording change little of it, since bands are shares of the spectrum.

    Args:
        samples: [T].
    """
    padded: Any = np.pad(samples, (0, max(0, _PARTS * 2 * _BANDS - len(samples))))
    rows: list[NDArray[np.float32]] = []
    for part in np.array_split(padded, _PARTS):
        power = np.abs(np.fft.rfft(part * np.hanning(len(part)))) ** 2
        rows.append(np.array([band.mean() for band in np.array_split(power, _BANDS)], dtype=np.float32))
    loud = np.log(np.stack(rows).ravel() + 1e-6 * (np.max(rows) + 1e-12))
    loud = loud - loud.mean()
    return (loud / (np.linalg.norm(loud) + 1e-12)).astype(np.float32)


def _alike(heard: dict[int, _Heard]) -> Iterator[tuple[int, int, float]]:
    """Yield each recording that is like an earlier one; silent ones are only compared for equality."""
    first: dict[str, int] = {}
    kept: list[int] = []
    spectra = np.zeros((len(heard), _BANDS * _PARTS), dtype=np.float32)
    for i, one in heard.items():
        if one.digest in first:
            yield i, first[one.digest], 1.0
            continue
        first[one.digest] = i
        if one.peak < SILENCE:
            continue
        alike = spectra[: len(kept)] @ one.spectrum
        at = int(alike.argmax()) if len(alike) else -1
        if at >= 0 and alike[at] >= _SIMILAR:
            yield i, kept[at], min(float(alike[at]), 0.999)
        else:
            spectra[len(kept)] = one.spectrum
            kept.append(i)
