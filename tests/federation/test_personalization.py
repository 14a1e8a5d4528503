"""What clients tell of the adapters that they keep, by hand."""

import math

import pytest
import torch

from fedcollm.federation.personalization import with_personal
from fedcollm.messages import ClientUpdate, Failure, PhaseAnswer, RoundRecord, Score, TrainRequest

REQUEST = TrainRequest(6, {"w": torch.zeros(1)}, run="run", keep=True)
RECORD = RoundRecord(5, {"slm": 0.5, "clients": 0.4}, seconds={"clients": 1.0, "distillation": 2.0}, lost={"z": "late"})


def told(client: str, right: float = 1.0, **changes) -> ClientUpdate:
    return ClientUpdate(client, 6, **{"adapter": {}, "score": Score({"acc": right}, 4), **changes})


def test_mean_over_clients_joins_the_last_records_scores():
    record, scores = with_personal(RECORD, REQUEST, ["a", "b"], [told("b", 4.0), told("a", 1.0)])
    assert record.scores == {"slm": 0.5, "clients": 0.4, "personal": 0.625}  # (1/4 + 4/4) / 2
    assert list(scores.items()) == [("a", 0.25), ("b", 1.0)]
    assert (record.round, record.lost) == (5, {"z": "late"})


def test_seconds_join_those_of_the_round():
    answers = [told(client, seconds={"clients": 3.0, "evaluation": 0.5}) for client in "ab"]
    record, _ = with_personal(RECORD, REQUEST, ["a", "b"], answers)
    assert record.seconds == {"clients": 7.0, "distillation": 2.0, "evaluation": 1.0}


def test_clients_that_tell_nothing_keep_their_adapter_all_the_same():
    record, scores = with_personal(RECORD, REQUEST, ["a"], [ClientUpdate("a", 6, {})])
    assert (record, scores) == (RECORD, {})


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([], "no answer"),
        ([Failure("b", "no space left")], "no space left"),
        ([told("b", adapter={"w": torch.zeros(1)})], "an unexpected answer"),
        ([ClientUpdate("b", 5, {})], "an unexpected answer"),
        ([PhaseAnswer("b", "00", {})], "an unexpected answer"),
        ([told("b", math.nan)], "a score that no examples can have"),
    ],
)
def test_client_that_keeps_nothing_is_named(answers, reason):
    record, scores = with_personal(RECORD, REQUEST, ["a", "b"], [told("a"), *answers])
    assert record.lost == {"z": "late", "b": f"keeps no adapter of its own: {reason}"}
    assert scores == {"a": 0.25}
    assert record.scores["personal"] == 0.25


def test_strangers_and_second_answers_are_left_out():
    record, scores = with_personal(RECORD, REQUEST, ["a"], [told("a", 1.0), told("a", 4.0), told("x", 4.0)])
    assert scores == {"a": 0.25}
    assert record.lost == {"z": "late"}


def test_no_clients_change_nothing():
    assert with_personal(RECORD, REQUEST, [], []) == (RECORD, {})
