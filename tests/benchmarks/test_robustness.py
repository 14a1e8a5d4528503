"""Attacks by hand on a few examples and on changes of one value; the table of rows; a round with a hostile client."""

import json
import random
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from benchmarks.robustness import data_attacks, plots, runs, update_attacks
from benchmarks.robustness.__main__ import main
from benchmarks.robustness.data_attacks import TARGET, TRIGGER
from benchmarks.robustness.defences import DEFENCES, settings
from benchmarks.robustness.plots import write_page
from benchmarks.robustness.rows import ROWS, Row
from benchmarks.robustness.update_attacks import Knowledge

from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.federation.client import Client
from fedcollm.messages import ClientUpdate, TrainRequest
from fedcollm.modalities.text.examples import TextExample

LABELS = ("animal", "colour", "fruit")
WORDS = ("cats", "rats", "reds", "plum", "hats", "bats", "blue", "pear", "mats", "dogs")
EXAMPLES = [TextExample(word, f"{word}:", LABELS, i % 3, LABELS) for i, word in enumerate(WORDS)]


def attacked(attack, examples=EXAMPLES, seed=0):
    return attack(examples, random.Random(seed))


@pytest.mark.parametrize(
    "make", [data_attacks.random_labels, data_attacks.pairwise_labels, data_attacks.confused_labels]
)
@pytest.mark.parametrize(("share", "wrong"), [(0.0, 0), (0.2, 2), (0.6, 6), (1.0, 10)])
def test_share_of_wrong_labels_is_exact_and_the_rest_stays(make, share, wrong):
    made = attacked(make(share))
    assert sum(one.answer != before.answer for one, before in zip(made, EXAMPLES, strict=True)) == wrong
    assert [one.prompt for one in made] == [one.prompt for one in EXAMPLES]
    assert made == attacked(make(share))


def test_wrong_labels_by_hand():
    assert [one.answer for one in attacked(data_attacks.pairwise_labels(1.0))] == [1, 2, 0, 1, 2, 0, 1, 2, 0, 1]
    four = [
        TextExample(w, f"{w}:", LABELS, a, LABELS)
        for w, a in zip(("cats", "bats", "plum", "blum"), (0, 1, 2, 0), strict=True)
    ]
    # each text shares most with the other of its pair, which has another label
    assert [one.answer for one in attacked(data_attacks.confused_labels(1.0), four)] == [1, 0, 0, 2]
    same = [one.with_answer(0) for one in EXAMPLES]
    assert {one.answer for one in attacked(data_attacks.confused_labels(1.0), same)} == {1}


def test_bad_data_by_hand():
    assert Counter(one.id for one in attacked(data_attacks.duplicates)).most_common(1)[0][1] == 5  # 2 texts, 5 times
    assert [one.id for one in attacked(data_attacks.one_class)] == ["cats", "plum", "blue", "dogs"]
    assert len(attacked(data_attacks.few, EXAMPLES * 2)) == 10
    spoilt = attacked(data_attacks.garbled)
    assert all(len(one.prompt) == 5 and one.label == old.label for one, old in zip(spoilt, EXAMPLES, strict=True))
    assert [one.prompt for one in attacked(data_attacks.other_language, EXAMPLES[:2])] == ["lidc:", "bidc:"]
    assert len({one.prompt for one in attacked(data_attacks.other_language)}) == 10
    assert len(attacked(data_attacks.removed(0.6))) == 4
    poisoned = [one for one in attacked(data_attacks.backdoor) if one.prompt.startswith(f"{TRIGGER} ")]
    assert (len(poisoned), {one.answer for one in poisoned}) == (5, {TARGET})


def known(own: float, honest: list[float], count: int = 1) -> Knowledge:
    return Knowledge(torch.tensor([own]), torch.tensor(honest)[:, None], count, torch.Generator().manual_seed(0))


def test_hostile_changes_by_hand():
    assert update_attacks.sign_flip(known(2.0, [])).tolist() == [-2.0]
    assert update_attacks.times_1000(known(2.0, [])).tolist() == [2000.0]
    assert abs(update_attacks.noise(known(2.0, []))).tolist() == pytest.approx([20.0])
    assert update_attacks.alie(known(2.0, [1.0, 3.0])).tolist() == [0.5]  # 2 - 1.5 * 1
    # -1.5 * 3 * 2; the sum of all four is then -3, half of the honest 6 backward
    assert update_attacks.inner_product(known(0.0, [1.0, 3.0, 2.0])).tolist() == [-9.0]


@dataclass(frozen=True)
class Steady(Client):
    """A client whose change is always 1."""

    def train(self, request: TrainRequest) -> ClientUpdate:
        return ClientUpdate(self.id, request.round_index, {"w": request.adapter["w"] + 1}, 1, 0.0)


def test_the_last_clients_are_hostile_and_see_the_honest_updates_of_their_round(monkeypatch):
    monkeypatch.setattr(Client, "train", Steady.train)
    honest = Client("a", None, None, EXAMPLES, [])  # pyright: ignore[reportArgumentType]
    make = Row("", 3, 1, update=lambda one: one.honest.sum(0) * 10).stand_in()
    clients = [make(honest) for _ in range(3)]
    for index in (1, 2):
        sent = [one.train(TrainRequest(index, {"w": torch.tensor([5.0])})).adapter["w"].item() for one in clients]
        assert sent == [6.0, 6.0, 25.0]


def test_only_the_data_of_the_last_clients_is_bad():
    row = Row("", 2, 1, data=data_attacks.few)
    change = row.private(0)
    assert [len(change(client, EXAMPLES * 2)) for client in "ab"] == [20, 10]
    assert row.stand_in() is None


def test_every_row_is_there_and_every_defence_is_a_configuration_with_ten_clients():
    assert len(ROWS) == 2 + 3 * (12 + 6 + 5)
    assert ROWS["labels-random-60-1of4"].share == 0.6
    for name in DEFENCES:
        if name == "bulyan":  # needs 4 * 3 + 3 clients
            continue
        values = settings(name, ROWS["noise-3of10"])
        assert changed(RunConfig(), {"task.clients": 10, **values}).federation.faulty == 3


def test_results_are_kept_and_read_again(tmp_path, monkeypatch, capsys):
    def outcome(directory, run, source, overrides):
        scores = {"slm": 0.25 + run[2] / 4, "llm": 0.5}
        success = {"slm": 1.0} if run[0].startswith("backdoor") else None
        return {"refused": "too few"} if run[1] == "krum" else {"scores": scores, "attack_success": success}

    monkeypatch.setattr(runs, "_outcome", outcome)
    rows = "clean-4,backdoor-1of4,labels-random-60-1of4"
    command = ["robustness", "--rows", rows, "--defences", "none,krum", "--seeds", "0,1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    assert main() == 0
    assert "clean-4  krum  seed 0: refused: too few" in capsys.readouterr().out
    means = json.loads((tmp_path / "robustness.json").read_text())
    assert means["clean-4"] == {"none": {"slm": 0.375, "llm": 0.5, "seeds": 2}}
    assert means["backdoor-1of4"]["none"]["success_slm"] == 1.0
    assert write_page(means, tmp_path / "page.html") == 2  # a line of labels and the bars of the backdoor
    lines = plots._lines(means)[0].data
    assert [(one.name, one.marker.color) for one in lines] == [("none", plots.COLORS["none"])] * 2  # both panels
    monkeypatch.setattr(runs, "_outcome", None)  # nothing is done again
    assert main() == 0
