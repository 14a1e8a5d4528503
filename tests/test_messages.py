"""The values that travel, and the record of a round."""

import json
import math

import pytest
import torch

from fedcollm.messages import (
    RoundRecord,
    Score,
    TrainRequest,
    adapter_bytes,
    all_finite,
    distance,
    misfit,
    misshapen,
    not_finite,
)


def test_adapter_bytes_counts_values_in_their_own_dtype():
    # 6 values of 4 bytes and 5 values of 2 bytes
    assert adapter_bytes({"a": torch.zeros(2, 3), "b": torch.zeros(5, dtype=torch.bfloat16)}) == 34


def test_empty_adapter_has_no_bytes():
    assert adapter_bytes({}) == 0


def test_score_value_is_the_mean_of_the_first_metric():
    score = Score({"acc": 3.0, "acc_norm": 1.0}, 4)
    assert score.value == 0.75
    assert score.mean("acc_norm") == 0.25


def test_scores_merge_exactly():
    merged = Score({"acc": 1.0}, 2, {("a", "b"): 1, ("a", "a"): 1}) + Score(
        {"acc": 3.0}, 3, {("a", "b"): 2, ("b", "b"): 1}
    )
    assert merged == Score({"acc": 4.0}, 5, {("a", "b"): 3, ("a", "a"): 1, ("b", "b"): 1})
    assert merged.value == 0.8  # (1 + 3) / (2 + 3), not the mean 0.75 of 1/2 and 3/3


def test_outcomes_of_parts_stand_together():
    merged = Score({"acc": 1.0}, 1, outcomes={"a": 1.0}) + Score({"acc": 0.0}, 1, outcomes={"b": 0.0})
    assert merged.outcomes == {"a": 1.0, "b": 0.0}


def test_empty_score_is_neutral_on_either_side():
    score = Score({"acc": 1.0}, 2, {("a", "a"): 1}, {"x": 1.0, "y": 0.0})
    assert Score({}, 0) + score == score
    assert score + Score({}, 0) == score


def test_metric_with_a_count_of_its_own_is_a_mean_over_that():
    one = Score({"words": 3.0, "wer": 6.0, "clips": 1.0}, 2, counts={"words": 4, "wer": 4})
    assert (one.value, one.mean("wer"), one.mean("clips")) == (0.75, 1.5, 0.5)
    both = one + Score({"words": 0.0, "wer": 4.0, "clips": 1.0}, 1, counts={"words": 8, "wer": 8})
    assert both.counts == {"words": 12, "wer": 12}
    assert both.value == 0.25  # 3 of 12 words, not the mean of 3/4 and 0/8
    assert Score({}, 0) + one == one == one + Score({}, 0)
    assert Score.from_wire(one.to_wire()) == one


def test_score_of_no_examples_is_not_a_number():
    assert math.isnan(Score({}, 0).value)
    assert math.isnan(Score({"acc": 0.0}, 0).value)


def test_record_survives_json():
    record = RoundRecord(
        round=3,
        scores={"slm": 0.1, "llm": 1 / 3},
        losses={"client": 1.25, "kl": 1e-9},
        participants=("0", "2"),
        bytes_up=12,
        bytes_down=24,
        seconds={"clients": 18.2},
        peak_memory_bytes=5,
    )
    assert RoundRecord.from_json(record.to_json()) == record


def test_record_is_one_line_with_the_documented_keys():
    line = RoundRecord(1, participants=("a",)).to_json()
    assert "\n" not in line
    assert json.loads(line) == {
        "round": 1,
        "scores": {},
        "losses": {},
        "participants": ["a"],
        "bytes_up": 0,
        "bytes_down": 0,
        "seconds": {},
        "peak_memory_bytes": 0,
        "lost": {},
        "epsilon": None,
        "notes": [],
        "clients": {},
    }


def test_distance_is_the_norm_over_all_tensors():
    one = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[4.0]], dtype=torch.bfloat16)}
    other = {"b": torch.tensor([[0.0]]), "a": torch.tensor([1.0, -1.0])}
    assert distance(one, other) == 5.0  # (0, 3) and 4
    assert distance({}, {}) == 0.0
    assert math.isnan(distance({"a": torch.tensor([math.nan])}, {"a": torch.zeros(1)}))


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_found(odd):
    adapter = {"a": torch.zeros(3), "b": torch.tensor([0.0, odd])}
    assert not all_finite(adapter.values())
    assert not_finite(adapter) == "b"
    assert misshapen(adapter, adapter) is None
    assert misfit(adapter, adapter) == "tensor b is not finite"
    assert not TrainRequest(1, adapter).finite


def test_values_whose_squares_overflow_are_finite():
    adapter = {"a": torch.tensor([3e38, -3e38]), "b": torch.tensor([60000.0], dtype=torch.float16)}
    assert all_finite(adapter.values())
    assert misfit(adapter, adapter) is None
    assert TrainRequest(1, adapter).finite
    assert all_finite([])
