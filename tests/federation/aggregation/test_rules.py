"""Aggregation rules that are no means, by hand; and that every name has its rule."""

import pytest
import torch
from tests.parties import mean_of

from fedcollm.config.choices import AGGREGATIONS
from fedcollm.federation.aggregation.rules import RULES, CoordinateMedian
from fedcollm.messages import ClientUpdate


def update(name: str, *values: float, examples: int = 1) -> ClientUpdate:
    return ClientUpdate(name, 1, {"w": torch.tensor(values)}, examples, 0.5)


def test_every_choice_has_a_rule_of_its_name():
    assert RULES.keys() == AGGREGATIONS.keys()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([(1.0, 5.0)], [1.0, 5.0]),
        ([(1.0, 5.0), (3.0, 1.0)], [2.0, 3.0]),
        ([(1.0, 5.0), (3.0, 1.0), (1e9, 2.0)], [3.0, 2.0]),
        ([(1.0, 4.0), (2.0, 3.0), (5.0, 2.0), (-1e9, 1.0)], [1.5, 2.5]),
    ],
)
def test_median_by_hand(values, expected):
    updates = [update(str(i), *row, examples=1 + 10 * i) for i, row in enumerate(values)]
    assert mean_of(updates, rule=CoordinateMedian()).adapter["w"].tolist() == expected


def test_median_keeps_the_dtype():
    adapter = {"w": torch.tensor([1.0], dtype=torch.bfloat16)}
    rule = CoordinateMedian()
    rule.add(adapter, 1.0)
    assert rule.value()["w"].dtype == torch.bfloat16
