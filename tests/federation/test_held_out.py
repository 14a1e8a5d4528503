"""Weights by scores on held-out examples, by hand."""

import math

import pytest
import torch

from fedcollm.config import FederationConfig
from fedcollm.federation.aggregation.plain import PlainAggregator
from fedcollm.federation.aggregation.validation import odd_score
from fedcollm.federation.held_out import HELD_OUT, joined, split, weight
from fedcollm.messages import ClientUpdate, Score, TrainRequest


@pytest.mark.parametrize(
    ("count", "share", "sizes"),
    [(10, 0.2, (8, 2)), (10, 0.0, (10, 0)), (2, 0.01, (1, 1)), (3, 0.99, (1, 2)), (1, 0.5, (1, 0))],
)
def test_sizes_of_both_parts(count, share, sizes):
    kept, apart = split(range(count), share, "a")
    assert (len(kept), len(apart)) == sizes
    assert sorted([*kept, *apart]) == list(range(count))


def test_clients_hold_out_different_places_and_always_the_same_ones():
    assert split(range(100), 0.2, "a") == split(range(100), 0.2, "a") != split(range(100), 0.2, "b")


def update(client: str, value: float, score: Score | None) -> ClientUpdate:
    return ClientUpdate(client, 1, {"w": torch.tensor([value])}, 7, 0.0, score)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (Score({HELD_OUT: 3.0}, 4), 0.75),
        (Score({"acc": 1.0, HELD_OUT: 3.0}, 2, counts={HELD_OUT: 4}), 0.75),
        (Score({"acc": 1.0, HELD_OUT: 900.0}, 2, counts={HELD_OUT: 1}), 1.0),  # what a hostile client claims
        (Score({HELD_OUT: -3.0}, 4), 0.001),
        (Score({"acc": 1.0, HELD_OUT: 0.0}, 2, counts={HELD_OUT: 0}), 0.001),
        (Score({HELD_OUT: math.nan}, 4), 0.001),
        (Score({"acc": 1.0}, 2), 0.001),
        (None, 0.001),
    ],
)
def test_weight_is_the_score_within_bounds(score, expected):
    assert weight(update("a", 0.0, score)) == expected


def test_mean_by_scores_and_only_scores_on_test_examples_are_the_clients_own():
    sent = [
        update("a", 4.0, joined(Score({"acc": 1.0}, 2), Score({"acc": 3.0}, 4))),
        update("b", 8.0, joined(None, Score({"acc": 1.0}, 4))),
    ]
    assert [odd_score(one.score) for one in sent] == [None, None]
    aggregator = PlainAggregator(FederationConfig(aggregation="held_out"))
    got = aggregator.aggregate(lambda _: iter(sent), TrainRequest(1, {"w": torch.zeros(1)}), ["a", "b"])
    assert got.adapter["w"].tolist() == [5.0]  # 0.75 * 4 + 0.25 * 8
    assert got.clients_score == 0.5
