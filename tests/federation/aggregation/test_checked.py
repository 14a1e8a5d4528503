"""A mean that scores worse on public examples is rejected; by hand on one value."""

import pytest
import torch

from fedcollm.errors import SpoiledRoundError
from fedcollm.federation import statistics
from fedcollm.federation.aggregation.base import Aggregate
from fedcollm.federation.aggregation.checked import CheckedAggregator
from fedcollm.messages import Adapter, TrainRequest

MEAN = Aggregate({"w": torch.tensor([0.25])}, None, None, {}, ("a", "b"), {"c": "no answer"}, culprits=("c",))


class Fixed:
    """An aggregator that always gives one mean."""

    def aggregate(self, ask, request, clients) -> Aggregate:
        return MEAN

    def bytes_up(self, theta, clients) -> int:
        return 7


def checked(max_drop: float) -> CheckedAggregator:
    """The score of an adapter is its only value, and θ has 0.5."""
    return CheckedAggregator(Fixed(), lambda adapter: float(adapter["w"]), max_drop)


def aggregate(max_drop: float, theta: Adapter | None = None) -> Aggregate:
    request = TrainRequest(3, {"w": torch.tensor([0.5])} if theta is None else theta)
    return checked(max_drop).aggregate(lambda _: iter(()), request, ["a", "b", "c"])


def test_drop_at_the_margin_is_accepted_and_above_it_rejected():
    assert aggregate(0.25) is MEAN
    assert aggregate(1.0) is MEAN
    with pytest.raises(
        SpoiledRoundError, match=r"round 3: .* scores 0\.250 .* 0\.500 without .*max_drop 0\.2\."
    ) as one:
        aggregate(0.2)
    assert (one.value.culprits, one.value.lost) == (("c",), {"c": "no answer"})


def test_score_that_is_no_number_is_rejected_unless_that_of_theta_is_none_either():
    request, nan = TrainRequest(1, {"w": torch.tensor([0.5])}), float("nan")
    one = CheckedAggregator(Fixed(), lambda adapter: nan if adapter is MEAN.adapter else 0.5, 1.0)
    with pytest.raises(SpoiledRoundError, match="nan"):
        one.aggregate(lambda _: iter(()), request, ["a"])
    one = CheckedAggregator(Fixed(), lambda adapter: 0.5 if adapter is MEAN.adapter else nan, 0.0)
    found = one.aggregate(lambda _: iter(()), request, ["a"])
    assert found.adapter is MEAN.adapter
    assert "could not check" in found.notes[0]


def test_statistics_are_passed_on():
    def never(adapter: Adapter) -> float:
        raise AssertionError

    request = TrainRequest(statistics.ROUND, {statistics.GRAM: torch.zeros(1)})
    assert CheckedAggregator(Fixed(), never, 0.0).aggregate(lambda _: iter(()), request, []) is MEAN


def test_size_of_an_update_is_that_of_the_aggregator_within():
    assert checked(0.0).bytes_up({}, []) == 7
