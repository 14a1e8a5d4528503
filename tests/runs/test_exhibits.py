"""What a run writes for the examples of its report."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.config.loading import load_config
from fedcollm.modalities.exhibits import Exhibit, from_json
from fedcollm.runs import directory as run_directory
from fedcollm.runs.exhibit_files import read_exhibits
from fedcollm.runs.exhibits import choose
from fedcollm.runs.runner import run


@dataclass(frozen=True)
class Named:
    id: str


# by sha256, the order of "a" to "f" is b (3e..), c (2e..) and so on; see the test
NAMED = [Named(name) for name in "abcdef"]


def test_order_is_that_of_a_digest():
    # sha256: a ca97..., b 3e23..., c 2e7d..., d 18ac..., e 3f79..., f 252f...
    assert [one.id for one in choose(NAMED, {}, 6)] == ["d", "f", "c", "b", "e", "a"]


def test_half_is_wrong_and_comes_first():
    outcomes = {"a": 0.0, "b": 0.5, "c": 1.0, "d": 1.0, "e": 0.0, "f": 1.0}
    assert [one.id for one in choose(NAMED, outcomes, 4)] == ["b", "e", "d", "f"]
    assert [one.id for one in choose(NAMED, outcomes, 3)] == ["b", "e", "d"]


@pytest.mark.parametrize(("wrong", "chosen"), [("", "dfcb"), ("a", "adfc"), ("abcdef", "dfcb"), ("abcde", "dcbf")])
def test_either_kind_fills_up_for_the_other(wrong, chosen):
    outcomes = {one.id: float(one.id not in wrong) for one in NAMED}
    assert "".join(one.id for one in choose(NAMED, outcomes, 4)) == chosen


def test_fewer_examples_than_asked_for():
    assert len(choose(NAMED, {"a": 0.0}, 50)) == 6


@pytest.fixture
def config() -> RunConfig:
    sizes = {"private_size": 20, "public_size": 20, "test_size": 16, "clients": 2}
    return load_config("digits", task=sizes, federation={"rounds": 1})


def _shown(directory: Path) -> list[Exhibit]:
    return from_json(run_directory.read_json(directory, run_directory.EXHIBITS))


def test_answers_are_those_of_the_score_and_nothing_else_changes(config, tmp_path):
    torch.manual_seed(1)
    run(config, tmp_path / "with")
    after = torch.get_rng_state()
    torch.manual_seed(1)
    run(changed(config, {"evaluation.exhibits": 0}), tmp_path / "without")
    assert torch.equal(after, torch.get_rng_state())
    assert not (tmp_path / "without" / run_directory.EXHIBITS).exists()
    one, other = (run_directory.load_round(tmp_path / place) for place in ("with", "without"))
    assert one is not None
    assert other is not None
    assert all(torch.equal(one[1][role][name], other[1][role][name]) for role in one[1] for name in one[1][role])
    shown = _shown(tmp_path / "with")
    outcomes = run_directory.read_json(tmp_path / "with", run_directory.OUTCOMES)
    assert len(shown) == 12
    for exhibit in shown:
        assert exhibit.picture
        for role, answer in exhibit.answers.items():
            assert answer.right == (outcomes[role][exhibit.id] == 1)
            assert answer.right == (answer.text == exhibit.truth)
    first = read_exhibits(tmp_path / "with", run_directory.EXHIBITS_START)
    assert {one.id for one in shown} <= {one.id for one in first}
    assert all(set(one.answers) == {"slm", "llm"} and not one.picture for one in first)
    start = run_directory.read_json(tmp_path / "with", run_directory.CONFUSION_START)
    right = sum(number for true, found, number in start["slm"] if true == found)
    assert right / 16 == run_directory.read_records(tmp_path / "with")[0].scores["slm"]
    assert right == sum(bool(one.answers["slm"].right) for one in first)  # all 16 of them


def test_exhibits_are_of_the_last_round(config, tmp_path):
    run(config, tmp_path / "run")
    first = _shown(tmp_path / "run")
    run(changed(config, {"federation.rounds": 2}), tmp_path / "run", resume=True)
    assert [one.id for one in _shown(tmp_path / "run")] != [] != first
    # killed after the checkpoint: resuming writes what is missing
    for name in (run_directory.OUTCOMES, run_directory.EXHIBITS):
        (tmp_path / "run" / name).unlink()
    run(changed(config, {"federation.rounds": 2}), tmp_path / "run", resume=True)
    assert len(_shown(tmp_path / "run")) == 12


def test_control_shows_none(config, tmp_path):
    control = {"control": {"features": "ngrams"}, "server.epochs": 0}
    run(changed(config, control), tmp_path / "run")
    assert not (tmp_path / "run" / run_directory.EXHIBITS).exists()
