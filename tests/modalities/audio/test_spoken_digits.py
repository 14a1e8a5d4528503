"""Real recordings: digits by six speakers (Jakobovski's free spoken digits), where somebody has put them."""

import zipfile

import pytest
import torch
from tests.conftest import SHARED, needs_shared

from fedcollm.config import PartitionConfig, StatisticsConfig, TaskConfig
from fedcollm.data.partition import split
from fedcollm.data.pool import Pool
from fedcollm.modalities.audio.classification import AudioExample, AudioTask
from fedcollm.modalities.audio.features import LogMel
from fedcollm.modalities.audio.recordings import Recording

DIGITS = tuple("0123456789")


@pytest.fixture(scope="module")
def pool() -> Pool:
    """The official parts: recordings 0 to 4 of each speaker and digit are for the test."""
    parts: dict[bool, list[AudioExample]] = {False: [], True: []}
    with zipfile.ZipFile(SHARED / "spoken_digits" / "recordings.zip") as archive:
        for name in sorted(name for name in archive.namelist() if name.endswith(".wav")):
            digit, speaker, take = name.rsplit("/", 1)[-1].removesuffix(".wav").split("_")
            example = AudioExample(name, Recording(archive.read(name), name), digit, speaker, DIGITS)
            parts[int(take) < 5].append(example)
    return Pool(parts[False], parts[True])


@needs_shared
def test_speakers_are_clients(pool):
    assert [len(part) for part in (pool.train, pool.test)] == [2_700, 300]
    task = TaskConfig(clients=6, partition=PartitionConfig(kind="natural"), private_size=50, public_size=50)
    parts = split(pool, task, 0)
    assert [len({clip.group for clip in part}) for part in parts.private.values()] == [1] * 6
    assert len({clip.group for part in parts.private.values() for clip in part}) == 6


@needs_shared
def test_loudness_of_bands_tells_digits_apart(pool):
    task = AudioTask("digits", DIGITS, LogMel(16, 96))
    train, test = (task.evidence(part, StatisticsConfig(features="ngrams")) for part in (pool.train[::5], pool.test))
    rows = train.rows.double()
    inner = rows.T @ rows + 0.1 * torch.eye(rows.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(inner, rows.T @ train.targets.double())
    right = (test.rows.double() @ weights).argmax(1) == test.targets.argmax(1)
    assert right.double().mean() > 0.7  # by chance: 0.1
    assert any("resampled to 16000 Hz" in note for note in task.notes())
