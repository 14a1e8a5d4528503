"""Spoken words, of which a test makes only a few."""

import random

import pytest

from fedcollm.config import PartitionConfig, TaskConfig
from fedcollm.data import partition
from fedcollm.data.pool import Pool
from fedcollm.data.sources import spoken_words
from fedcollm.data.sources.acoustics import Scene
from fedcollm.data.sources.spoken_words import CLIENT_ACCENTS, PUBLIC_ACCENTS, SCENES, WORDS, load_spoken_words


@pytest.fixture
def pool(monkeypatch, tmp_path) -> Pool:
    """The clips of three speakers, one of them for the test."""
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path))
    monkeypatch.setattr(spoken_words, "SPEAKERS", ("m1", "f1"))
    monkeypatch.setattr(spoken_words, "TEST_SPEAKERS", ("belinda",))
    monkeypatch.setattr(spoken_words, "TAKES", 1)
    monkeypatch.setattr(spoken_words, "TEST_TAKES", 1)
    return load_spoken_words()


def test_parts_have_their_own_accents_and_speakers(pool):
    assert len(WORDS) == len(set(WORDS)) == 20
    assert [len(part) for part in (pool.train, pool.test, pool.public)] == [160, 80, 80]
    assert {clip.group for clip in pool.train} == {clip.group for clip in pool.test} == set(CLIENT_ACCENTS)
    assert {clip.group for clip in pool.public} == set(PUBLIC_ACCENTS)
    assert {clip.label for clip in pool.train} == set(WORDS)
    assert {clip.id.rsplit("/")[-1] for clip in pool.test} == {"belinda-0.flac"}
    every = [*pool.train, *pool.test, *pool.public]
    assert len({clip.content for clip in every}) == len({clip.id for clip in every}) == 320
    for clip in random.Random(0).sample(every, 20):
        assert (clip.recording.facts.rate, clip.recording.facts.channels) == (16_000, 1)
        assert clip.recording.facts.seconds == 0.96


def test_clips_come_from_the_cache_and_are_made_alike(pool, monkeypatch, tmp_path):
    again = [clip.content for part in (pool.train, pool.test, pool.public) for clip in part]
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path / "other"))
    made = load_spoken_words()
    assert [clip.content for part in (made.train, made.test, made.public) for clip in part] == again
    monkeypatch.setattr(spoken_words, "speak", lambda plan: pytest.fail("spoken again"))
    assert len(load_spoken_words().train) == 160


def test_another_recipe_is_another_entry_of_the_cache(pool, monkeypatch, tmp_path):
    monkeypatch.setattr(spoken_words, "SCENES", {**SCENES, "scotland": Scene("white", 30.0)})
    other = load_spoken_words()
    assert len([place for place in tmp_path.iterdir() if place.is_dir()]) == 2
    changed = {one.group for one, two in zip(pool.train, other.train, strict=True) if one.content != two.content}
    assert changed == {"scotland"}


def test_clients_are_accents(pool):
    task = TaskConfig(
        clients=4, partition=PartitionConfig(kind="natural"), private_size=10, public_size=10, test_size=10
    )
    parts = partition.split(pool, task, 0).private
    assert [{clip.group for clip in part} for part in parts.values()] == [{accent} for accent in CLIENT_ACCENTS]
