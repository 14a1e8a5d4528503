"""What the sections of a configuration say beside their keys."""

import pytest

from fedcollm.config import EvaluationConfig


@pytest.mark.parametrize(("rounds", "every", "expected"), [(1, 1, [1]), (3, 1, [1, 2, 3]), (4, 3, [3, 4]), (2, 9, [2])])
def test_the_last_round_is_always_scored(rounds, every, expected):
    evaluation = EvaluationConfig(every=every)
    assert [index for index in range(1, rounds + 1) if evaluation.scores(index, rounds)] == expected


@pytest.mark.parametrize(("clients", "expected"), [("every", [2, 4, 5]), ("last", [5]), ("never", [])])
def test_clients_are_scored_in_scored_rounds_only(clients, expected):
    evaluation = EvaluationConfig(every=2, clients=clients)
    assert [index for index in range(1, 6) if evaluation.scores_clients(index, 5)] == expected
