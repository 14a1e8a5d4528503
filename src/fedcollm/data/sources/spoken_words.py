"""Twenty spoken words in six accents of English and six places: a client per accent and place, spoken by espeak-ng.

The public set D_a has two standard accents, and each client has one regional accent. Each accent is recorded in a place
of its own, with other noise: babble, the hum of a machine in an echoing room, white noise, or a telephone line.
Training and test set share no speaker: a speaker is a voice variant of espeak-ng. The clips are made once and kept in
the cache; speed, pitch and noise are drawn from a fixed seed, so that every run has the same clips.
"""

import hashlib
import io
import random
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedcollm.data.pool import Pool
from fedcollm.data.sources.acoustics import Samples, Scene, record
from fedcollm.data.sources.espeak import Utterance, speak
from fedcollm.modalities.audio.classification import AudioExample
from fedcollm.modalities.audio.recordings import Recording, audio_package
from fedcollm.models.pretrained import cached
from fedcollm.progress import say
from fedcollm.seeding import derive_seed

#: The words, which are the classes.
# fmt: off
WORDS: tuple[str, ...] = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go",
)
# fmt: on

#: Accent to its voice of espeak-ng: those of the public set, and those of the clients.
PUBLIC_ACCENTS: Mapping[str, str] = {"america": "en-us", "received": "en-gb-x-rp"}
CLIENT_ACCENTS: Mapping[str, str] = {
    "caribbean": "en-029",
    "lancaster": "en-gb-x-gbclan",
    "scotland": "en-gb-scotland",
    "west_midlands": "en-gb-x-gbcwmd",
}

#: Accent to where it is recorded. Without noise, a control in closed form knows .99 of the words; with it, .59.
SCENES: Mapping[str, Scene] = {
    "america": Scene("pink", 25.0),
    "received": Scene("babble", 25.0),
    "caribbean": Scene("babble", 15.0),
    "lancaster": Scene("hum", 15.0, echo_seconds=0.4),
    "scotland": Scene("white", 15.0),
    "west_midlands": Scene("pink", 15.0, band=(300.0, 3_400.0)),
}

#: Voice variants of espeak-ng without an echo: with one, each process gives other samples.
SPEAKERS: tuple[str, ...] = ("m1", "m3", "m4", "m5", "m6", "f1", "adam", "anika", "john", "max", "paul", "steph")
TEST_SPEAKERS: tuple[str, ...] = ("m7", "m8", "belinda", "rob")

#: How often a speaker says each word, in training and for the test.
TAKES, TEST_TAKES = 2, 2

_RATE, _SEED, _ARCHIVE = 16_000, 1, "clips.zip"

#: Samples of a clip, which is what the shipped models read.
_LENGTH = 15_360

#: Every how many words of the public set one is part of the babble.
_BABBLE = 7


class _Clip(NamedTuple):
    accent: str
    word: str
    speaker: str
    take: int

    @property
    def file(self) -> str:
        return f"{self.accent}/{self.word}/{self.speaker}-{self.take}.flac"


def load_spoken_words() -> Pool:
    """Return the clips: those of the clients' accents in `train` and `test`, those of the standard ones in `public`.

    Raises:
        UserError: a package that audio needs is not installed, or the cache can't be written.
    """
    audio_package("espeakng_loader")
    place = cached(f"spoken-words-{_recipe()}-espeak-{version('espeakng-loader')}", _make)
    parts: dict[str, list[AudioExample]] = {"train": [], "test": [], "public": []}
    with zipfile.ZipFile(place / _ARCHIVE) as archive:
        for clip in _clips():
            recording = Recording(archive.read(clip.file), clip.file)
            test = clip.speaker in TEST_SPEAKERS
            part = "public" if clip.accent in PUBLIC_ACCENTS else "test" if test else "train"
            parts[part].append(AudioExample(clip.file, recording, clip.word, clip.accent, WORDS))
    return Pool(parts["train"], parts["test"], parts["public"])


def _recipe() -> str:
    """Return a digest of all that the clips depend on besides the version of espeak-ng."""
    speakers = (SPEAKERS, TEST_SPEAKERS, TAKES, TEST_TAKES)
    made_of = (_SEED, WORDS, dict(PUBLIC_ACCENTS), dict(CLIENT_ACCENTS), dict(SCENES), speakers, _LENGTH, _BABBLE)
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]


def _clips() -> Iterator[_Clip]:
    for accent in (*PUBLIC_ACCENTS, *CLIENT_ACCENTS):
        tests = () if accent in PUBLIC_ACCENTS else TEST_SPEAKERS
        for speaker in (*SPEAKERS, *tests):
            for word in WORDS:
                takes = TEST_TAKES if speaker in TEST_SPEAKERS else TAKES
                yield from (_Clip(accent, word, speaker, take) for take in range(takes))


def _make(directory: Path) -> None:
    clips, voices = list(_clips()), {**PUBLIC_ACCENTS, **CLIENT_ACCENTS}
    say(f"speaking {len(clips)} words with espeak-ng, once")
    draw = random.Random(derive_seed(_SEED, "spoken_words"))
    rate, spoken = speak(
        [
            Utterance(clip.word, f"{voices[clip.accent]}+{clip.speaker}", draw.randint(130, 230), draw.randint(25, 75))
            for clip in clips
        ]
    )
    words = [_resampled(samples, rate) for samples in spoken]
    public = [word for clip, word in zip(clips, words, strict=True) if clip.accent in PUBLIC_ACCENTS]
    with zipfile.ZipFile(directory / _ARCHIVE, "w") as archive:
        for clip, word in zip(clips, words, strict=True):
            seed = derive_seed(_SEED, "scene", clip.file)
            heard = record(word, SCENES[clip.accent], public[::_BABBLE], _RATE, _LENGTH, seed)
            archive.writestr(clip.file, _flac(heard))


def _resampled(spoken: bytes, rate: int) -> Samples:
    """Return 16-bit samples as numbers from -1 to 1, at 16 kHz."""
    samples = np.frombuffer(spoken, np.int16).astype(np.float32) / 2**15
    return audio_package("soxr").resample(samples, rate, _RATE)[:_LENGTH]


def _flac(samples: Samples) -> bytes:
    """Return samples as a FLAC file of 16 bits."""
    file = io.BytesIO()
    audio_package("soundfile").write(file, samples, _RATE, format="FLAC")
    return file.getvalue()
