"""Who stands out, by hand; and in a run."""

import re

import pytest

import fedcollm
from fedcollm.config.baselines import changed
from fedcollm.federation.standouts import standouts
from fedcollm.messages import RoundRecord
from fedcollm.report.runs import read_run

QUIET = {"norm": 1.0, "cosine": 0.5, "loss": 1.0, "score": 0.5}


def record(index: int, *clients: dict[str, float]) -> RoundRecord:
    return RoundRecord(index, clients={str(k): QUIET | values for k, values in enumerate(clients)})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"norm": 1000.0}, "its change is 1e\\+03 times as large as the others'. Let .* median bounds"),
        ({"norm": 0.25}, "its change is 0.25 times as large"),
        ({"cosine": 0.25}, "the cosine of its change with the others' is 0.25 below the others'. Wrong labels"),
        ({"loss": 2.0}, "its training loss is 2 times the others'. Wrong labels .*`fedcollm audit`"),
        ({"score": 0.375}, "its model's score after training is 0.125 below the others'. Wrong labels"),
        ({"norm": 4.0, "loss": 2.0}, "4 times as large as the others', its training loss is 2 .*audit"),
    ],
)
def test_client_that_differs_from_equal_ones(values, said):
    (sentence,) = standouts([RoundRecord(0), *(record(index, {}, {}, {}, values) for index in (1, 2, 3))])
    assert sentence.startswith("client 3 stands out (median of 3 rounds): ")
    assert re.search(said, sentence)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"norm": 1.9},
        {"norm": 0.51},
        {"cosine": 0.35},
        {"cosine": 0.9},
        {"loss": 1.4},
        {"loss": 0.2},
        {"score": 0.46},
        {"score": 0.9},
    ],
)
def test_client_that_differs_little_or_for_the_better(values):
    assert standouts([record(1, {}, {}, {}, values)] * 3) == []


@pytest.mark.parametrize(("score", "stands_out"), [(0.29, True), (0.30, False)])
def test_clients_that_differ_anyway_leave_more_room(score, stands_out):
    # the others have .46, .50 and .54: their absolute deviations are .04, 0, .04, and 3.5 · 1.4826 · .04 = .2076
    others = [{"score": one} for one in (0.46, 0.50, 0.54)]
    assert bool(standouts([record(1, *others, {"score": score})] * 3)) == stands_out


def test_one_bad_round_of_three_is_no_reason_and_two_are_but_not_two_of_two():
    bad, good = record(1, {}, {}, {}, {"loss": 9.0}), record(2, {}, {}, {}, {})
    assert standouts([bad, good, good]) == []
    assert len(standouts([bad, bad, good])) == 1
    assert standouts([bad, bad]) == []


def test_cleaning_is_no_advice_to_clients_that_clean_already():
    bad = [record(1, {}, {}, {}, {"loss": 9.0})] * 3
    assert standouts(bad, cleaning=True)[0].endswith("let its operator run `fedcollm audit` on its data")
    assert "on its data. task.cleaning: {judge: ngrams_global} leaves out" in standouts(bad)[0]


def test_two_clients_tell_nothing_of_each_other():
    assert standouts([record(1, {}, {"loss": 9.0})] * 3) == []
    assert len(standouts([record(1, {}, {}, {"loss": 9.0})] * 3)) == 1


def test_rounds_without_single_updates_tell_nothing():
    assert standouts([RoundRecord(0), RoundRecord(1), RoundRecord(2)]) == []


def test_numbers_that_only_some_clients_have():
    some = RoundRecord(1, clients={"0": {"norm": 1.0}, "1": {"norm": 1.0}, "2": {"loss": 9.0}, "3": {"norm": 9.0}})
    assert [one.split(" stands")[0] for one in standouts([some] * 3)] == ["client 3"]


def test_name_of_a_client_is_no_markup():
    odd = RoundRecord(1, clients={"0": QUIET, "1": QUIET, "\x1b[2J": QUIET | {"loss": 9.0}})
    assert standouts([odd] * 3)[0].startswith("client  [2J stands out")


def test_run_says_who_stands_out_and_what_an_update_showed(tiny_config, tmp_path, monkeypatch):
    values = {"task.clients": 3, "task.private_size": 20, "server.epochs": 0, "federation.rounds": 1}
    monkeypatch.setattr(
        "fedcollm.runs.runner.standouts", lambda records, cleaning: [f"client x of {len(records)} records"]
    )
    result = fedcollm.run(changed(tiny_config, values), tmp_path)
    last = result.records[-1]
    assert last.notes == ("client x of 2 records",)
    assert list(last.clients) == ["0", "1", "2"]
    assert all(numbers.keys() == {"norm", "cosine", "loss", "score"} for numbers in last.clients.values())
    assert "client x of 2 records" in read_run(tmp_path).data["notes"]


def test_secure_aggregation_and_its_simulation_show_nothing(tiny_config, tmp_path):
    values = {"task.clients": 3, "task.private_size": 20, "server.epochs": 0, "federation.rounds": 1}
    for key in ("enabled", "simulate_quantization"):
        config = changed(tiny_config, values | {f"federation.secure_aggregation.{key}": True})
        assert [dict(one.clients) for one in fedcollm.run(config, tmp_path / key).records] == [{}, {}]
