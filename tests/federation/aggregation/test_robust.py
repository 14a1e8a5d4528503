"""Robust rules by hand on changes of one or two values, and against Flower's own functions."""

import math

import numpy as np
import pytest
import torch

from fedcollm.config import FederationConfig
from fedcollm.config.choices import AGGREGATIONS
from fedcollm.errors import RoundFailedError
from fedcollm.federation.aggregation.base import Start
from fedcollm.federation.aggregation.plain import PlainAggregator
from fedcollm.federation.aggregation.robust import ROBUST, RobustRule, krum_order
from fedcollm.messages import Adapter, ClientUpdate, TrainRequest

THETA = {"w": torch.tensor([10.0, 20.0])}


def rule(name: str, changes, faulty: int = 1, theta: Adapter = THETA, reference: Adapter | None = None) -> RobustRule:
    """A rule to which θ plus each change was added; the numbers of examples must not matter."""
    made = RobustRule(ROBUST[name], Start(theta, faulty, reference))
    for number, change in enumerate(changes):
        made.add({"w": theta["w"] + torch.tensor(change)}, 10.0**number)
    return made


def moved(name: str, changes, faulty: int = 1, **more) -> list[float]:
    """The combined change."""
    return (rule(name, changes, faulty, **more).value()["w"] - THETA["w"]).tolist()


def weights(name: str, changes, faulty: int = 1, **more) -> list[float]:
    made = rule(name, changes, faulty, **more)
    made.value()
    assert made.weights is not None
    return made.weights


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([(1.0, 5.0)], [1.0, 5.0]),
        ([(1.0, 5.0), (3.0, 1.0)], [2.0, 3.0]),
        ([(1.0, 5.0), (3.0, 1.0), (1024.0, 2.0)], [3.0, 2.0]),
        ([(1.0, 4.0), (2.0, 3.0), (5.0, 2.0), (-1024.0, 1.0)], [1.5, 2.5]),
    ],
)
def test_median_by_hand(values, expected):
    assert moved("median", values) == expected


def test_trimmed_mean_leaves_out_f_at_each_end_of_each_value():
    values = [(1.0, -1024.0), (2.0, 1.0), (3.0, 2.0), (1024.0, 3.0), (4.0, 4.0)]
    assert moved("trimmed_mean", values, 1) == [3.0, 2.0]  # of 2, 3, 4 and of 1, 2, 3
    assert moved("trimmed_mean", values, 2) == [3.0, 2.0]  # the middle ones
    assert moved("trimmed_mean", [(1.0, 2.0), (2.0, 4.0)], 0) == [1.5, 3.0]  # the mean


def test_krum_takes_the_change_with_the_nearest_neighbors():
    # K - f - 2 = 2 neighbors: 1 + 4, 1 + 1, 1 + 4, 64 + 81, 9801 + 9604 ...
    values = [(0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (10.0, 0.0), (100.0, 0.0)]
    assert weights("krum", values) == [0.0, 1.0, 0.0, 0.0, 0.0]
    assert moved("krum", values) == [1.0, 0.0]


def test_multi_krum_is_the_mean_of_all_except_f():
    values = [(0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (10.0, 0.0), (100.0, 0.0)]
    assert weights("multi_krum", values) == [0.25, 0.25, 0.25, 0.25, 0.0]
    assert moved("multi_krum", values) == [3.25, 0.0]


def test_krum_s_scores_are_over_the_nearest_others():
    squared = torch.tensor(
        [[0.0, 1.0, 16.0, 100.0], [1.0, 0.0, 9.0, 81.0], [16.0, 9.0, 0.0, 36.0], [100.0, 81.0, 36.0, 0.0]]
    )
    assert krum_order(squared, 0) == [1, 0, 2, 3]  # two neighbors each: 17, 10, 25, 117
    assert krum_order(squared, 1) == [0, 1, 2, 3]  # one: 1, 1, 9, 36


def test_bulyan_by_hand():
    # f = 1, K = 7: m = 5 of Krum, then the m - 2 = 3 values nearest to the median of these
    values = [(0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (3.0, 9.0), (4.0, 0.0), (5.0, 0.0), (1000.0, 1000.0)]
    got = moved("bulyan", values)
    assert got[0] in (2.0, 3.0)
    assert got[1] == 0.0


def test_geometric_median_of_three_on_a_line_is_the_middle_one():
    assert moved("geometric_median", [(0.0, 0.0), (1.0, 0.0), (1000.0, 0.0)]) == pytest.approx([1.0, 0.0], abs=1e-4)


def test_geometric_median_of_a_triangle_is_its_fermat_point():
    # corners (0, 0), (1, 0), (1/2, √3/2): the center (1/2, √3/6), with all weights a third
    corners = [(0.0, 0.0), (1.0, 0.0), (0.5, math.sqrt(3) / 2)]
    assert weights("geometric_median", corners) == pytest.approx([1 / 3] * 3)
    assert moved("geometric_median", corners) == pytest.approx([0.5, math.sqrt(3) / 6], abs=1e-5)


def test_geometric_median_of_equal_changes_is_that_change():
    assert moved("geometric_median", [(2.0, 4.0)] * 3) == pytest.approx([2.0, 4.0])
    assert moved("geometric_median", [(2.0, 4.0)] * 2 + [(1e6, 0.0)]) == pytest.approx([2.0, 4.0], abs=1e-2)


def test_trust_weighs_by_agreement_with_the_server():
    reference = {"w": THETA["w"] + torch.tensor([2.0, 0.0])}
    # cosines 1, 3/5, 0 and -1; lengths 4, 5, 7 and 1; the server's is 2: (1 * 2/4, 0.6 * 2/5, 0, 0) / 1.6
    values = [(4.0, 0.0), (3.0, 4.0), (0.0, 7.0), (-1.0, 0.0)]
    assert weights("trust", values, reference=reference) == pytest.approx([0.3125, 0.15, 0.0, 0.0])
    assert moved("trust", values, reference=reference) == pytest.approx([1.7, 0.6])  # 1.25 + 0.45, 0.6
    assert moved("trust", [(-1.0, 0.0), (0.0, 0.0)], reference=reference) == [0.0, 0.0]
    assert moved("trust", [(1.0, 0.0)], reference=THETA) == [0.0, 0.0]  # the server's own training changed nothing


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([(2.0, 0.0), (4.0, 0.0), (1.0, 1.0), (-8.0, 0.0)], [1 / 3, 1 / 6, 1 / 3, 0]),  # median length 2 of those left
        ([(2.0, 0.0), (0.0, 2.0), (2.0, 2.0)], [1 / 3, 1 / 3, 1 / 3 / math.sqrt(2)]),  # at right angles is not against
        (
            [(2.0, 0.0), (2.0, 1.0), (-2.0, 0.0), (-1.0, 2.0), (2.0, 0.0)],
            [0.25, 0.5 / math.sqrt(5), 0, 0.5 / math.sqrt(5), 0.25],
        ),
        ([(0.0, 0.0), (0.0, 0.0), (0.0, 0.0)], [0, 0.5, 0.5]),  # nothing agrees with nothing
        ([(2.0, 0.0), (-2.0, 0.0)], [0, 1]),
    ],
)
def test_agreement_leaves_out_the_f_that_oppose_most_and_shortens_the_longest(values, expected):
    assert weights("agreement", values) == pytest.approx(expected)


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("attack", [1e6, -1e6])
def test_no_faulty_client_moves_the_result_beyond_the_honest_ones(name, attack):
    generator = torch.Generator().manual_seed(0)
    honest = [(1 + 0.1 * torch.randn(2, generator=generator)).tolist() for _ in range(6)]
    reference = {"w": THETA["w"] + torch.tensor([1.0, 1.0])}
    got = moved(name, [*honest, [attack, -attack]], reference=reference)
    assert all(0.7 < value < 1.3 for value in got)


@pytest.mark.parametrize("name", ROBUST)
def test_the_result_has_thetas_shapes_and_dtypes(name):
    theta = {"b": torch.zeros(2, 3, dtype=torch.bfloat16), "a": torch.zeros(1, dtype=torch.float32)}
    made = RobustRule(ROBUST[name], Start(theta, 0, {key: tensor + 1 for key, tensor in theta.items()}))
    for _ in range(3):
        made.add({key: tensor + 1 for key, tensor in theta.items()}, 1.0)
    assert [(key, tensor.tolist(), tensor.dtype) for key, tensor in made.value().items()] == [
        ("b", [[1.0] * 3] * 2, torch.bfloat16),
        ("a", [1.0], torch.float32),
    ]


@pytest.mark.parametrize(
    ("name", "faulty", "least"),
    [
        ("krum", 1, 5),
        ("krum", 2, 7),
        ("bulyan", 1, 7),
        ("bulyan", 2, 11),
        ("median", 1, 3),
        ("trimmed_mean", 2, 5),
        ("trust", 3, 1),
        ("mean", 3, 1),
    ],
)
def test_numbers_of_clients_that_rules_need(name, faulty, least):
    assert AGGREGATIONS[name].least(faulty) == least


def test_flower_agrees():
    flower = pytest.importorskip("flwr.server.strategy.aggregate")
    generator = np.random.default_rng(0)
    changes = [generator.normal(size=2).astype(np.float32) for _ in range(11)]
    changes[3] *= 50
    results = [([change], 7) for change in changes]
    values, zero = [change.tolist() for change in changes], {"w": torch.zeros(2)}

    def ours(name: str, faulty: int) -> np.ndarray:
        return rule(name, values, faulty, zero).value()["w"].numpy()

    for name, faulty, theirs in (
        ("median", 2, flower.aggregate_median(results)),
        ("trimmed_mean", 2, flower.aggregate_trimmed_avg(results, 2 / 11)),
        ("krum", 2, flower.aggregate_krum(results, 2, 0)),
        ("multi_krum", 2, flower.aggregate_krum(results, 2, 9)),
        ("bulyan", 2, flower.aggregate_bulyan(results, 2, flower.aggregate_krum, to_keep=0)),
    ):
        np.testing.assert_allclose(ours(name, faulty), theirs[0], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", sorted(name for name in ROBUST if AGGREGATIONS[name].bears))
@pytest.mark.parametrize("left", [1, 2, 3])
def test_a_round_that_lost_its_clients_fails_before_a_rule_sees_too_few_updates(name, left):
    settings = FederationConfig.model_construct(**FederationConfig().model_dump() | {"aggregation": name, "faulty": 3})
    request = TrainRequest(1, THETA, evaluate=False)
    updates = [ClientUpdate(str(i), 1, THETA, 1, 0.5) for i in range(left)]
    with pytest.raises(RoundFailedError, match=f"{left} of 9 clients gave an update"):
        PlainAggregator(settings).aggregate(lambda asked: iter(updates), request, [str(i) for i in range(9)])
