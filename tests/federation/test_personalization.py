"""What is known of the adapters that clients keep, by hand."""

import pytest
import torch

from fedcollm.federation.personalization import lost_clients, with_personal
from fedcollm.messages import ClientUpdate, Failure, PhaseAnswer, RoundRecord, Score, TrainRequest

REQUEST = TrainRequest(6, {"w": torch.zeros(1)}, run="run", keep=True)
RECORD = RoundRecord(5, {"slm": 0.5, "clients": 0.4}, seconds={"clients": 1.0, "distillation": 2.0}, lost={"z": "late"})
DONE = ClientUpdate("a", 6, {})


def test_mean_over_the_clients_of_a_simulation_joins_the_last_records_scores():
    scores = {"a": Score({"acc": 1.0}, 4), "b": Score({"acc": 4.0}, 4)}
    record, values = with_personal(RECORD, {}, scores)
    assert record.scores == {"slm": 0.5, "clients": 0.4, "personal": 0.625}  # (1/4 + 4/4) / 2
    assert list(values.items()) == [("a", 0.25), ("b", 1.0)]
    assert (record.round, record.lost, record.seconds) == (5, {"z": "late"}, RECORD.seconds)


def test_clients_over_a_network_tell_nothing_and_are_not_lost():
    assert lost_clients(REQUEST, ["a"], [DONE]) == {}
    assert with_personal(RECORD, {}, {}) == (RECORD, {})


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([], "no answer"),
        ([Failure("b", "no space left\x1b[2J")], "no space left [2J"),
        ([ClientUpdate("b", 6, {"w": torch.zeros(1)})], "an unexpected answer"),
        ([ClientUpdate("b", 5, {})], "an unexpected answer"),
        ([PhaseAnswer("b", "00", {})], "an unexpected answer"),
        ([ClientUpdate("b", 6, {}, score=Score({"acc": 1.0}, 4))], "an unexpected answer"),
        ([ClientUpdate("b", 6, {}, examples=3, loss=0.5)], "an unexpected answer"),
        ([ClientUpdate("b", 6, {}, seconds={"clients": 1.0})], "an unexpected answer"),
    ],
)
def test_client_that_does_not_confirm_or_tells_more_is_named(answers, reason):
    lost = lost_clients(REQUEST, ["a", "b"], [DONE, *answers])
    assert lost == {"b": reason}
    record, _ = with_personal(RECORD, lost, {})
    assert record.lost == {"z": "late", "b": f"keeps no adapter of its own: {reason}"}


def test_strangers_and_second_answers_are_left_out():
    assert lost_clients(REQUEST, ["a"], [DONE, Failure("a", "why"), ClientUpdate("x", 6, {})]) == {}
