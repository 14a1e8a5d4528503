"""What a person reads in the terminal."""

import io
import json

import pytest
from rich.console import Console

from fedcollm.cli.check_tables import cost_table
from fedcollm.cli.run import check
from fedcollm.cli.tables import round_line, summary_table
from fedcollm.config import RunConfig
from fedcollm.messages import RoundRecord
from fedcollm.runs import directory as directories
from fedcollm.runs.estimate import Cost, RoleCost


def test_line_of_a_round_has_scores_and_seconds_by_part():
    record = RoundRecord(3, {"slm": 0.55, "llm": 0.6789, "clients": 0.5}, seconds={"clients": 18.2, "evaluation": 5.0})
    assert round_line(record) == ("round  3  SLM 0.550  clients 0.500  LLM 0.679  23 s (clients 18, evaluation 5)")


def test_line_has_what_clients_keep():
    record = RoundRecord(5, {"slm": 0.5, "clients": 0.25, "personal": 0.75, "llm": 0.5})
    assert "SLM 0.500  clients 0.250  personal 0.750  LLM 0.500" in round_line(record)


def test_line_before_training():
    assert round_line(RoundRecord(0, {"slm": 0.05})) == "round  0  SLM 0.050  before training"


def test_line_says_who_was_lost_and_why():
    record = RoundRecord(1, seconds={"clients": 2.0}, lost={"2": "no answer", "4": "tensor w is not finite"})
    assert round_line(record) == (
        "round  1  not scored  2 s (clients 2)  lost client 2: no answer; client 4: tensor w is not finite"
    )


def test_line_says_what_was_spent_of_privacy():
    record = RoundRecord(2, {"slm": 0.5}, seconds={"distillation": 2.0}, epsilon=1.23456)
    assert round_line(record) == "round  2  SLM 0.500  ε 1.23  2 s (distillation 2)"


def test_control_has_a_score_and_no_gain(tmp_path):
    directories.start(tmp_path, RunConfig())
    directories.write_json(tmp_path, directories.ENVIRONMENT, {})
    for record in (RoundRecord(0), RoundRecord(1, {"control": 0.7123}, bytes_up=2000, bytes_down=2000)):
        directories.save_round(tmp_path, record, {})
    sink = io.StringIO()
    Console(file=sink, width=200).print(summary_table(tmp_path))
    (row,) = (line for line in sink.getvalue().splitlines() if "without training" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["control, without training", "–", "0.712", "–"]
    assert round_line(RoundRecord(1, {"control": 0.7123})).startswith("round  1  control 0.712")


CONTROL = {"server": {"epochs": 0}, "federation": {"rounds": 1}}


@pytest.mark.parametrize(("control", "said"), [(None, "1.28% of parameters"), ({"features": "ngrams"}, "")])
def test_share_that_is_sent_is_one_of_parameters(tmp_path, control, said):
    directories.start(tmp_path, RunConfig.model_validate({} if control is None else CONTROL | {"control": control}))
    counts = {"adapter": 128, "base": 10_000}
    directories.write_json(
        tmp_path, directories.ENVIRONMENT, {"parameters": {"slm": counts}, "dtype": {"slm": "bfloat16"}}
    )
    directories.save_round(tmp_path, RoundRecord(1, {"slm": 0.5}, bytes_up=512, bytes_down=512), {})
    sink = io.StringIO()
    Console(file=sink, width=200).print(summary_table(tmp_path))
    (row,) = (line for line in sink.getvalue().splitlines() if "per client and round" in line)
    assert row.split("│")[4].strip() == said


@pytest.mark.parametrize(("start", "words"), [(None, "zero-shot"), ("theirs", "before training")])
def test_scores_of_an_adapter_trained_before_are_not_called_zero_shot(tmp_path, start, words):
    directories.start(tmp_path, RunConfig.model_validate({"llm": {"adapter": {"start": start}}}))
    directories.write_json(tmp_path, directories.ENVIRONMENT, {})
    directories.save_round(tmp_path, RoundRecord(0, {"slm": 0.5}), {})
    assert [column.header for column in summary_table(tmp_path).columns] == ["", words, "final", "gain"]


def test_a_check_says_which_client_holds_what():
    data = {
        "clients": {"0": {"A": 2, "B": 1}, "1": {"A": 4}},
        "public": {"B": 5},
        "unlabelled": 0,
        "test": 6,
        "duplicates_removed": 7,
        "notes": ["client 0 holds bank", "client 1 holds court"],
    }
    long = {"tokens of a prompt": {"median": 9, "95 %": 13, "longest": 19}}
    cost = Cost({"slm": RoleCost("tiny", 100, 10, 40, 200, 40)}, 10**9, data, lengths=long)
    assert str(cost_table(cost).caption).splitlines()[1:] == [
        "data: private {'0': 3, '1': 4}, public 5, unlabelled 0, test 6, duplicates removed 7",
        "  labels, client 0: 'A' 2, 'B' 1",
        "  labels, client 1: 'A' 4",
        "  labels, public: 'B' 5",
        "  tokens of a prompt: median 9, 95 % 13, longest 19",
        "  note: client 0 holds bank",
        "  note: client 1 holds court",
    ]
    many = {"clients": {"0": {"all": 7}}, "public": dict.fromkeys("ABCDE", 1)}
    shown = str(cost_table(Cost(cost.roles, 1, data | many)).caption)
    assert "client 0:" not in shown
    assert "labels, public: 'A' 1, 'B' 1, 'C' 1 and 2 more" in shown


def test_a_check_says_what_there_is_to_say_of_models():
    cost = Cost({"slm": RoleCost("tiny", 100, 10, 40, 200, 40)}, 10**9, None, notes=("slm.adapter.start: another",))
    assert "note: slm.adapter.start: another" in str(cost_table(cost).caption)


def test_a_check_says_every_setting(capsys, monkeypatch):
    cost = Cost({"slm": RoleCost("tiny", 100, 10, 40, 200, 40)}, 10**9, None)
    monkeypatch.setattr("fedcollm.runs.estimate.check", lambda config: cost)
    settings = ["client.proximal=0.5", "seed=3"]
    check("icd10", settings, as_json=True)
    words = json.loads(capsys.readouterr().out)["settings"]
    assert {"5 rounds", "seed: 3"} <= set(words)
    assert any("FedProx" in phrase for phrase in words)
    check("icd10", settings)
    shown = " ".join(capsys.readouterr().out.split())
    assert "FedProx" in shown
    assert "seed: 3" in shown


@pytest.mark.parametrize(
    ("made", "words"), [(True, "is in the cache"), (False, "is not in the cache: the run heals it first")]
)
def test_a_check_says_whether_the_base_is_healed_already(made, words):
    cost = Cost({"slm": RoleCost("tiny", 100, 10, 40, 200, 40)}, 10**9, None, healed={"slm": made})
    assert f"slm.heal: the healed base {words}" in str(cost_table(cost).caption)
