"""The user's own recordings: tables of them, and what is said of every row that is wrong."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from pyarrow import parquet

from fedcollm.config import FormatConfig
from fedcollm.data.audio_files import find_sounds, load_sounds, load_speech
from fedcollm.data.pool import Pool
from fedcollm.errors import UserError
from fedcollm.modalities.audio.recordings import Reader

CLASSES = FormatConfig(audio="file", answer="kind", group="ward")
WORDS = FormatConfig(audio="file", transcript="kind", group="ward")


def beep(file: Path, hertz: float = 440, seconds: float = 0.2, rate: int = 16_000, channels: int = 1) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    soundfile.write(file, np.stack([samples] * channels, axis=1), rate)
    return file


def load(path: Path, format: FormatConfig = CLASSES) -> Pool:
    if format.transcript is not None:
        return load_speech(path, format)
    return load_sounds(path, format, find_sounds(path, format))


def told(examples) -> list[tuple[str, str | None, str | None]]:
    return [(example.id, example.label, example.group) for example in examples or ()]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    beep(root / "clips" / "a.wav", 300)
    beep(root / "clips" / "b.flac", 900)
    return rewrite(root / "train.csv", "clips/a.wav,low,north", "clips/b.flac,high,south")


def rewrite(table: Path, *rows: str) -> Path:
    table.write_text("\n".join(["file,kind,ward", *rows]) + "\n", encoding="utf-8")
    return table


@pytest.mark.parametrize("format", [CLASSES, WORDS], ids=["classes", "transcripts"])
def test_table_names_recordings_labels_and_clients(table, format):
    pool = load(table, format)
    assert told(pool.train) == [("1", "low", "north"), ("2", "high", "south")]
    assert [example.recording.source for example in pool.train] == [
        table.parent / "clips" / name for name in ("a.wav", "b.flac")
    ]
    assert pool.test is pool.public is pool.unlabelled is None
    assert len({example.content for example in pool.train}) == 2


@pytest.mark.parametrize("format", [CLASSES, WORDS], ids=["classes", "transcripts"])
def test_parts_are_tables_with_their_names(table, format):
    for name in ("dev", "public"):
        rewrite(table.with_name(f"{name}.csv"), "clips/a.wav,low,")
    table.with_name("unlabelled.csv").write_text("file\nclips/b.flac\n", encoding="utf-8")
    pool = load(table.parent, format)
    assert [len(part) for part in (pool.train, pool.test, pool.public)] == [2, 1, 1]
    assert told(pool.unlabelled) == [("1", None, None)]  # only the clients' data needs groups
    (table.parent / "val.csv").write_text(table.read_text())
    with pytest.raises(UserError, match=r"both dev and val"):
        load(table.parent, format)


def test_parquet_may_hold_the_files_themselves(table):
    contents = [(table.parent / "clips" / name).read_bytes() for name in ("a.wav", "b.flac")]
    column = [{"bytes": content, "path": None} for content in contents]
    parquet.write_table(
        pa.table({"file": column, "kind": ["x", "y"], "ward": ["n", "s"]}), table.with_suffix(".parquet")
    )
    pool = load(table.with_suffix(".parquet"))
    assert [example.recording.source for example in pool.train] == contents


def test_classes_are_those_of_the_training_data_or_listed(table):
    assert find_sounds(table, CLASSES) == ("high", "low")
    listed = CLASSES.model_copy(update={"choices": ["low", "dog"]})
    assert find_sounds(table, listed) == ("low", "dog")
    with pytest.raises(UserError, match=r"line 3: answer 'high' .* is not one of"):
        load(table, listed)
    rewrite(table, "clips/a.wav,low,north")
    with pytest.raises(UserError, match="at least two distinct classes of recordings"):
        load(table)
    assert len(load_sounds(table, CLASSES, ("low", "high"), several_classes=False).train) == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("clips/c.wav,x,n", r"line 3: there is no recording 'clips/c\.wav'"),
        ("../outside.wav,x,n", r"line 3: the recording '\.\./outside\.wav' is outside"),
        ("/etc/hosts,x,n", "line 3: the recording '/etc/hosts' is outside"),
        ("clips/empty.wav,x,n", r"line 3: .*empty\.wav: the recording has zero bytes"),
        ("clips/text.wav,x,n", r"line 3: .*text\.wav: can't be read as audio"),
        ("clips/short.wav,x,n", r"line 3: .*short\.wav: the recording is truncated"),
        ("clips/short.flac,x,n", r"line 3: .*short\.flac: the recording is truncated"),
        ("clips/b.flac,,n", r"line 3: column 'kind' \(task\.format\.(answer|transcript)\) is empty"),
        (",x,n", r"line 3: column 'file' \(task\.format\.audio\) is empty"),
        ("clips/b.flac,x,", r"line 3: column 'ward' \(task\.format\.group\) is empty"),
    ],
)
@pytest.mark.parametrize("format", [CLASSES, WORDS], ids=["classes", "transcripts"])
def test_row_that_is_wrong_is_named(table, row, said, format):
    clips = table.parent / "clips"
    beep(table.parent.parent / "outside.wav")
    (clips / "empty.wav").touch()
    (clips / "text.wav").write_text("no audio")
    for name in ("a.wav", "b.flac"):
        content = (clips / name).read_bytes()
        (clips / f"short{Path(name).suffix}").write_bytes(content[: len(content) * 2 // 3])
    rewrite(table, "clips/a.wav,low,north", row)
    with pytest.raises(UserError, match=said):
        load(table, format)


def test_transcript_without_a_word_is_named(table):
    rewrite(table, "clips/a.wav,low,north", "clips/b.flac,?!,south")
    with pytest.raises(UserError, match=r"line 3: 2: transcript '\?!' has no word"):
        load(table, WORDS)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no symbolic links")
def test_symbolic_links_are_followed_within_the_folder_only(table):
    clips = table.parent / "clips"
    (clips / "inner.wav").symlink_to(clips / "a.wav")
    (clips / "outer.wav").symlink_to(beep(table.parent.parent / "private" / "x.wav"))
    rewrite(table, "clips/inner.wav,low,n", "clips/b.flac,high,n")
    assert load(table).train[0].recording.source == clips / "a.wav"
    rewrite(table, "clips/b.flac,high,n", "clips/outer.wav,low,n")
    with pytest.raises(UserError, match=r"line 3: the recording .* is outside"):
        load(table)


def test_other_rates_channels_and_lengths_are_used_and_counted(table):
    beep(table.parent / "clips" / "c.wav", 500, 1.5, rate=8_000, channels=2)
    rewrite(table, "clips/a.wav,low,n", "clips/c.wav,high,n")
    reader = Reader(16_000, 1.0)
    assert [len(reader.read(example.recording)) for example in load(table).train] == [3_200, 16_000]
    assert [note.split(":")[0] for note in reader.notes()] == [
        "recordings with several channels",
        "recordings with another sampling rate",
        "recordings longer than 1 s",
    ]


def test_mp3_is_read_too(table):
    beep(table.parent / "clips" / "d.mp3", 500, 0.5)
    rewrite(table, "clips/a.wav,low,n", "clips/d.mp3,high,n")
    assert load(table).train[1].recording.facts.rate == 16_000


def test_recording_that_changes_during_a_run_is_refused(table):
    example = load(table).train[0]
    beep(table.parent / "clips" / "a.wav", 301)
    with pytest.raises(UserError, match=r"a\.wav: the recording has changed"):
        example.recording.mono()
