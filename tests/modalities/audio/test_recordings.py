"""Recordings: what is refused, and what is used by a rule that is counted."""

import io
import struct

import numpy as np
import pytest
import soundfile
import torch

from fedcollm.errors import UserError
from fedcollm.modalities.audio import recordings
from fedcollm.modalities.audio.recordings import Reader, Recording, audio_package


def encoded(samples, rate: int = 16_000, kind: str = "WAV", subtype: str | None = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.asarray(samples, dtype=np.float32), rate, format=kind, subtype=subtype)
    return file.getvalue()


def tone(seconds: float = 0.5, rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


NOISE = 0.1 * np.random.default_rng(0).standard_normal(16_000)


def test_samples_come_back_from_bytes_and_from_a_path(tmp_path):
    samples = [0.0, 0.5, -0.25, 0.125] * 500
    data = encoded(samples)
    (tmp_path / "a.wav").write_bytes(data)
    for recording in (Recording(data, "a"), Recording(tmp_path / "a.wav")):
        assert Reader().read(recording).tolist() == samples
        facts = recording.facts
        assert (facts.rate, facts.channels, facts.frames, facts.seconds) == (16_000, 1, 2_000, 0.125)
    assert Recording(data).facts.digest == Recording(tmp_path / "a.wav").facts.digest


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")])
def test_every_format_is_read(kind, subtype):
    heard = Reader().read(Recording(encoded(tone(), kind=kind, subtype=subtype)))
    assert heard.dtype == torch.float32
    assert (heard - torch.tensor(tone(), dtype=torch.float32)).abs().max() < 0.05


def test_a_clip_is_decoded_once_while_there_is_room(monkeypatch):
    monkeypatch.setattr(recordings, "_KEPT_BYTES", 50_000)
    reader, clips = Reader(), [Recording(encoded(tone(hertz=hertz))) for hertz in (440, 550)]  # 32,000 bytes each
    decoded = []
    original = Recording.mono
    monkeypatch.setattr(Recording, "mono", lambda self, seconds: decoded.append(self) or original(self, seconds))
    for clip in (*clips, *clips):
        reader.read(clip)
    assert decoded == [clips[0], clips[1], clips[1]]


def test_a_clip_without_remarks_has_no_notes():
    reader = Reader()
    reader.read(Recording(encoded(tone())))
    assert reader.notes() == []


def test_channels_are_averaged_and_counted():
    reader, two = Reader(), np.stack([np.full(1_600, 0.5), np.full(1_600, -0.25)], axis=1)
    assert set(reader.read(Recording(encoded(two))).tolist()) == {0.125}
    assert reader.notes() == ["recordings with several channels: they are averaged: 1"]


def test_another_rate_is_resampled_and_counted_once_per_recording():
    reader, eight = Reader(), Recording(encoded(tone(rate=8_000), 8_000))
    heard = reader.read(eight)
    assert len(heard) == reader.size(eight) == 8_000
    assert (heard - torch.tensor(tone(), dtype=torch.float32))[100:-100].abs().max() < 0.01
    reader.read(eight)
    assert reader.notes() == ["recordings with another sampling rate: they are resampled to 16000 Hz: 1"]


def test_long_clips_are_cut_at_their_end_and_short_ones_get_silence():
    reader = Reader(rate=1_000, longest=0.02, shortest=0.01)
    long = Recording(encoded(np.arange(30) / 64 + 1 / 64, 1_000))
    short = Recording(encoded([0.5] * 4, 1_000))
    assert reader.read(long).tolist() == [(i + 1) / 64 for i in range(20)]
    assert reader.read(short).tolist() == [0.5] * 4 + [0.0] * 6
    assert (reader.size(long), reader.size(short)) == (20, 10)
    assert reader.notes() == [
        "recordings longer than 0.02 s: they are cut off there: 1",
        "recordings shorter than 0.01 s: they get silence at their end: 1",
    ]


def test_a_cut_clip_is_not_decoded_to_its_end(monkeypatch):
    read = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, n, **k: read.append(n) or original(self, n, **k))
    Reader(rate=1_000, longest=0.02, shortest=0.01).read(Recording(encoded(np.zeros(50_000), 1_000)))
    assert read == [20]


@pytest.mark.parametrize(("loudness", "notes"), [(0.0, 1), (0.00005, 1), (0.0002, 0)])
def test_silence_is_kept_and_counted(loudness, notes):
    reader = Reader()
    assert len(reader.read(Recording(encoded(np.full(2_000, loudness), subtype="FLOAT")))) == 2_000
    assert len(reader.notes()) == notes


def test_header_with_absurd_values_is_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(recordings.Recording, "mono", lambda *a: pytest.fail("decoded"))
    fast = bytearray(encoded([0.5] * 100))
    fast[24:28] = struct.pack("<I", 2_000_000)
    for data, reason in (
        (bytes(fast), "2000000 Hz"),
        (encoded([0.5] * 100, 500), "500 Hz"),
        (encoded(np.zeros((10, 17))), "17 channels"),
        (encoded(np.zeros(3_601_000), 1_000, subtype="PCM_U8"), "3601 s"),
        (encoded([]), "no samples"),
    ):
        with pytest.raises(UserError, match=f"clip: .*{reason}"):
            _ = Recording(data, "clip").facts


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")])
@pytest.mark.parametrize("share", [0.99, 0.6, 0.1])
def test_truncated_recordings_are_refused(kind, subtype, share):
    data = encoded(np.tile(NOISE, 5), kind=kind, subtype=subtype)
    with pytest.raises(UserError, match=r"clip: .*truncated"):
        Reader().read(Recording(data[: int(share * len(data))], "clip"))


def test_streamed_wav_has_no_size_of_its_own():
    data = bytearray(encoded(tone()))
    data[4:8] = b"\xff\xff\xff\xff"
    assert len(Reader().read(Recording(bytes(data)))) == 8_000


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "zero bytes"), (b"RIFF", "as audio"), (b"hello, world" * 99, "as audio")]
)
def test_what_is_no_audio_is_refused_by_name(data, reason, tmp_path):
    (tmp_path / "clip.wav").write_bytes(data)
    with pytest.raises(UserError, match=rf"clip\.wav: .*{reason}"):
        _ = Recording(tmp_path / "clip.wav").facts


def test_missing_and_oversized_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"gone\.wav: .*can't be read"):
        _ = Recording(tmp_path / "gone.wav").facts
    (tmp_path / "large.wav").write_bytes(encoded(tone()))
    monkeypatch.setattr(recordings, "MOST_BYTES", 100)
    with pytest.raises(UserError, match=r"large\.wav: 16044 bytes"):
        _ = Recording(tmp_path / "large.wav").facts


def test_samples_must_be_finite():
    with pytest.raises(UserError, match=r"clip: .*finite"):
        Reader().read(Recording(encoded([0.5, float("nan")] * 999, subtype="FLOAT"), "clip"))


def test_package_that_is_missing_is_named():
    with pytest.raises(UserError, match=r"no_such_package.*fedcollm\[audio\]"):
        audio_package("no_such_package")


@pytest.mark.parametrize("kind", ["AIFF", "AU", "CAF", "W64", "NIST", "VOC"])
def test_other_containers_are_refused_by_name(kind):
    with pytest.raises(
        UserError, match=f"clip: the recording has the format {kind}, which is not read. Convert it to WAV"
    ):
        _ = Recording(encoded(tone(), kind=kind), "clip").facts


@pytest.mark.parametrize("kind", ["WAVEX", "RF64", "MP3"])
def test_other_kinds_of_wav_and_mp3_are_read(kind):
    data = encoded(tone(), kind=kind, subtype=None)
    assert Recording(data).facts.frames == 8_000


def test_flac_without_a_length_is_said_to_be_of_unknown_length():
    data = bytearray(encoded(tone(), kind="FLAC"))
    data[21] &= 0xF0
    data[22:26] = b"\0\0\0\0"  # the number of samples in STREAMINFO
    with pytest.raises(UserError, match="clip: the length is unknown"):
        _ = Recording(bytes(data), "clip").facts


@pytest.mark.parametrize(("loudness", "fits"), [(9_999.0, True), (10_001.0, False), (1e30, False), (-3e38, False)])
def test_samples_of_another_scale_are_refused_by_name(loudness, fits):
    samples = np.stack([np.full(1_600, loudness), np.full(1_600, -loudness)], axis=1)  # their mean is zero
    recording = Recording(encoded(samples, subtype="FLOAT"), "clip")
    if fits:
        assert len(Reader().read(recording)) == 1_600
        return
    with pytest.raises(UserError, match=r"clip: a sample of .*times full scale"):
        recording.mono()
