"""Bounds on the norms of changes by hand, and what the record says of them."""

import pytest
import torch

from fedcollm.config import FederationConfig
from fedcollm.errors import RoundFailedError
from fedcollm.federation.aggregation.plain import PlainAggregator
from fedcollm.federation.aggregation.rules import RULES
from fedcollm.federation.upload_format import UploadFormat
from fedcollm.messages import ClientUpdate, TrainRequest

THETA = {"w": torch.tensor([1.0, 1.0])}


def updates(*changes: tuple[float, float]) -> list[ClientUpdate]:
    """Of clients a, b, ... with one example each."""
    adapters = [{"w": THETA["w"] + torch.tensor(change)} for change in changes]
    return [ClientUpdate("abcde"[k], 1, adapter, 1, 0.0) for k, adapter in enumerate(adapters)]


def aggregate(changes, **settings):
    sent = updates(*changes)
    aggregator = PlainAggregator(FederationConfig.model_validate(settings))
    return aggregator.aggregate(lambda _: iter(sent), TrainRequest(1, THETA), [one.client for one in sent])


@pytest.mark.parametrize(
    ("changes", "settings", "expected"),
    [
        ([(3.0, 4.0), (0.0, 5.0), (300.0, 400.0)], {}, [101.0, 409 / 3]),
        ([(3.0, 4.0), (0.0, 5.0), (300.0, 400.0)], {"clip_to_median": 1.0}, [2.0, 13 / 3]),  # 3, 0, 3 and 4, 5, 4
        ([(3.0, 4.0), (0.0, 5.0), (300.0, 400.0)], {"clip_to_median": 2.0}, [3.0, 17 / 3]),  # 3, 0, 6 and 4, 5, 8
        ([(3.0, 4.0), (300.0, 400.0)], {"clip_to_median": 1.0}, [3.0, 4.0]),  # of two, the lower norm counts
        ([(0.0, 0.0), (0.0, 0.0), (3.0, 4.0)], {"clip_to_median": 1.0}, [1.0, 4 / 3]),  # zero changes don't count
        ([(0.0, 0.0)], {"clip_to_median": 1.0}, [0.0, 0.0]),
        ([(3.0, 4.0), (0.0, 2.0)], {"clip_norm": 2.5}, [0.75, 2.0]),  # 1.5, 0 and 2, 2
        ([(3.0, 4.0), (0.0, 9.0)], {"clip_norm": 2.5, "clip_to_median": 1.0}, [0.75, 2.25]),
    ],
)
def test_longer_changes_are_scaled_down_before_they_are_averaged(changes, settings, expected):
    assert (aggregate(changes, **settings).adapter["w"] - 1).tolist() == pytest.approx(expected, rel=1e-5)


def test_record_names_the_clients_whose_changes_were_longer():
    (note,) = aggregate([(3.0, 4.0), (0.0, 5.1), (30.0, 40.0)], clip_norm=5.0).notes
    assert "1 of 3 clients were scaled down to federation.clip_norm 5: client c with an L2 norm of 50" in note
    (note,) = aggregate([(3.0, 4.0), (0.0, 5.0), (30.0, 40.0)], clip_to_median=2.0).notes
    assert "2 × the median of 5: client c" in note
    assert aggregate([(3.0, 4.0), (0.0, 5.0)], clip_norm=5.0, clip_to_median=1.0).notes == ()


def test_change_of_a_lower_rank_is_measured_in_its_own_components():
    theta = {"q.lora_A.weight": torch.full((2, 1), 8.0)}
    sent = [ClientUpdate("a", 1, {"q.lora_A.weight": torch.full((1, 1), 12.0)}, 1, 0.0)]
    aggregator = PlainAggregator(FederationConfig(clip_norm=1.0), {"a": UploadFormat(rank=1)})
    got = aggregator.aggregate(lambda _: iter(sent), TrainRequest(1, theta), ["a"])
    assert got.adapter["q.lora_A.weight"].tolist() == [[9.0], [8.0]]


def test_record_names_the_clients_that_a_rule_gave_no_weight():
    near = [(1.0, 0.0), (1.1, 0.0), (0.9, 0.0), (1.0, 0.1), (90.0, 0.0)]
    assert aggregate(near, aggregation="multi_krum").notes == (
        "the aggregation rule gave no weight to the change of client e",
    )
    assert aggregate(near, aggregation="trimmed_mean").notes == ()


def test_round_with_too_few_updates_for_the_rule_fails():
    with pytest.raises(RoundFailedError, match=r"2 of 2 clients .* 3 are needed for federation.aggregation median"):
        aggregate([(1.0, 0.0), (2.0, 0.0)], aggregation="median")
    assert aggregate([(1.0, 0.0), (2.0, 0.0)], aggregation="median", faulty=0).participants == ("a", "b")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "settings",
    [
        *({"aggregation": name, "faulty": 0} for name in RULES if name not in ("product", "trust")),
        {"clip_norm": 1.0},
        {"clip_to_median": 1.0},
    ],
)
def test_nan_and_infinity_never_reach_the_model(value, settings):
    got = aggregate([(1.0, 0.0), (1.0, 0.0), (1.0, 0.0), (value, 0.0)], **settings)
    assert got.adapter["w"].tolist() == [2.0, 1.0]
    assert got.lost == {"d": "tensor w is not finite"}
