"""The task of spoken digits: tables of a tiny zip file by hand, and the real recordings with a real Whisper."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from benchmarks.spoken_digits import main
from tests.conftest import SHARED, needs_shared
from tests.modalities.audio.speech_models import whisper_directory

from fedcollm.config.loading import load_config
from fedcollm.data.catalogue import build_modality, load_pool
from fedcollm.data.partition import split


def archive(place: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(place, "w") as file:
        for hertz, name in enumerate(names, start=300):
            content = io.BytesIO()
            samples = 0.5 * np.sin(2 * np.pi * hertz * np.arange(1_600) / 8_000)
            soundfile.write(content, samples, 8_000, format="WAV")
            file.writestr(name, content.getvalue())
    return place


def test_speakers_are_groups_and_the_first_five_are_the_test(tmp_path):
    names = ["7_ann_0.wav", "7_ann_12.wav", "0_bob_4.wav", "0_bob_5.wav", "notes.txt"]
    model, out = whisper_directory(tmp_path / "model"), tmp_path / "out"
    main([str(archive(tmp_path / "a.zip", names)), model, str(out), "--layers", "0"])
    told = {part: (out / f"{part}.csv").read_text().splitlines() for part in ("train", "test")}
    assert told["train"] == [
        "file,words,speaker",
        "recordings/0_bob_5.wav,zero,bob",
        "recordings/7_ann_12.wav,seven,ann",
    ]
    assert told["test"] == ["file,words,speaker", "recordings/0_bob_4.wav,zero,bob", "recordings/7_ann_0.wav,seven,ann"]
    config = load_config(out / "spoken_digits.yaml")
    assert (config.slm.source, config.slm.layers, config.llm.layers) == (model, [0], None)
    assert [len(part or ()) for part in (load_pool(config.task, 0).train, load_pool(config.task, 0).test)] == [2, 2]


@needs_shared
@pytest.mark.slow
def test_real_recordings_are_six_clients(tmp_path):
    model, recordings = whisper_directory(tmp_path / "model"), SHARED / "spoken_digits" / "recordings.zip"
    main([str(recordings), model, str(tmp_path / "out")])
    config = load_config(tmp_path / "out" / "spoken_digits.yaml")
    pool = load_pool(config.task, 0)
    assert [len(pool.train), len(pool.test or ())] == [2_700, 300]
    parts = split(pool, config.task, 0)
    assert [{clip.group for clip in part} for part in parts.private.values()] == [
        {name} for name in ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
    ]
    task = build_modality(config.task, config.slm, config.llm, False)
    assert len(task.collate(parts.test[:2]).clips) == 2
    assert task.notes()[0].startswith("recordings with another sampling rate")
