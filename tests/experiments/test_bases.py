"""One table never holds runs whose bases were healed on different texts."""

import json
import os
import shutil

import pytest

import fedcollm
from fedcollm.config.baselines import changed
from fedcollm.errors import UserError
from fedcollm.runs import shrink


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config(tiny_config, model_directories, healing_text):
    heal = {"text": str(healing_text), "size": 96, "batch_size": 16}
    slm = {"slm.source": model_directories["llm"], "slm.layers": 2, "slm.heal": heal}
    return changed(tiny_config, slm | {"federation.rounds": 1})


def change(text) -> None:
    text.write_text(text.read_text(encoding="utf-8").replace("red", "good"), encoding="utf-8")


def compare(config, directory, *methods):
    return fedcollm.compare(config, directory, methods=methods)


def test_another_method_on_a_base_of_another_text_is_refused(config, tmp_path, healing_text, monkeypatch):
    compare(config, tmp_path / "out", "fedavg")
    change(healing_text)
    monkeypatch.setattr(shrink, "heal", lambda *_: pytest.fail("the other base was healed"))
    with pytest.raises(UserError, match=r"slm\.heal: the run in .*out/fedavg/seed-0 .*delete .*out/fedavg/seed-0 "):
        compare(config, tmp_path / "out", "fedavg", "fedcollm")


def test_the_text_is_needed_no_more_once_all_runs_are_done(config, tmp_path, healing_text):
    compare(config, tmp_path / "out", "fedavg")
    os.remove(healing_text)
    assert compare(config, tmp_path / "out", "fedavg").rows[-1].values["slm"]


def test_a_method_without_a_healed_base_is_added_whatever_the_text(config, tmp_path, healing_text):
    compare(config, tmp_path / "out", "fedavg")
    change(healing_text)
    assert len(compare(config, tmp_path / "out", "fedavg", "majority").rows) == 3  # with the zero-shot row


def test_finished_runs_on_two_bases_are_refused(config, tmp_path):
    compare(config, tmp_path / "out", "fedavg")
    shutil.copytree(tmp_path / "out" / "fedavg" / "seed-0", tmp_path / "out" / "fedavg" / "seed-1")
    file = tmp_path / "out" / "fedavg" / "seed-1" / "environment.json"
    file.write_text(json.dumps({"healed": {"slm": "llm-other"}}), encoding="utf-8")
    stored = tmp_path / "out" / "fedavg" / "seed-1" / "config.yaml"
    stored.write_text(stored.read_text(encoding="utf-8").replace("\nseed: 0", "\nseed: 1"), encoding="utf-8")
    with pytest.raises(UserError, match=r"the run in .*fedavg/seed-1 has the base llm-other, and the run in .*seed-0 "):
        fedcollm.compare(config, tmp_path / "out", methods=["fedavg"], seeds=[0, 1])
