"""What the server notes of each plain update, by hand."""

import pytest
import torch

from fedcollm.config import FederationConfig
from fedcollm.federation.aggregation.observations import Observer, sketch
from fedcollm.federation.aggregation.plain import PlainAggregator
from fedcollm.federation.upload_format import UploadFormat
from fedcollm.messages import ClientUpdate, Score, TrainRequest

THETA = {"w": torch.tensor([1.0, 1.0])}


def update(name: str, *change: float, loss: float | None = 0.5, score: Score | None = None) -> ClientUpdate:
    return ClientUpdate(name, 1, {"w": THETA["w"] + torch.tensor(change)}, 4, loss, score)


def test_numbers_by_hand():
    # directions (1, 0), (0, 1) and (-3/5, 4/5); the others of a: (-3/5, 9/5), of b: (2/5, 4/5), of c: (1, 1)
    updates = [update("a", 2.0, 0.0, loss=1.5), update("b", 0.0, 1.0, loss=None), update("c", -3.0, 4.0)]
    updates[2] = ClientUpdate("c", 1, updates[2].adapter, 4, 0.25, Score({"acc": 3.0}, 4))
    observer = Observer(THETA)
    assert list(observer.watch(updates)) == updates
    seen = observer.seen()
    assert seen["a"] == pytest.approx({"norm": 2.0, "loss": 1.5, "cosine": -0.3162278})  # -1 / √10
    assert seen["b"] == pytest.approx({"norm": 1.0, "cosine": 0.8944272})  # 2 / √5
    assert seen["c"] == pytest.approx({"norm": 5.0, "loss": 0.25, "score": 0.75, "cosine": 0.1414214})  # 1/5 / √2


def test_one_large_change_does_not_hide_the_direction_of_the_others():
    observer = Observer(THETA)
    list(observer.watch([update("a", 1.0, 0.0), update("b", 1.0, 0.0), update("c", 0.0, 1e6)]))
    assert observer.seen()["a"]["cosine"] == pytest.approx(0.7071068)


def test_change_of_zero_has_no_direction_and_one_client_has_no_others():
    observer = Observer(THETA)
    list(observer.watch([update("a", 0.0, 0.0), update("b", 1.0, 0.0)]))
    assert observer.seen() == {"a": {"norm": 0.0, "loss": 0.5}, "b": {"norm": 1.0, "loss": 0.5}}


def test_client_of_a_lower_rank_has_a_norm_only():
    theta = {"x.lora_A.weight": torch.zeros(2, 3), "x.lora_B.weight": torch.zeros(3, 2)}
    form = UploadFormat(rank=1)
    part = form.part(theta)
    assert part["x.lora_A.weight"].shape == (1, 3)
    observer = Observer(theta, {"a": form})
    list(observer.watch([ClientUpdate("a", 1, {name: one + 1 for name, one in part.items()}, 1, 0.5)]))
    assert observer.seen()["a"] == pytest.approx({"norm": 6**0.5, "loss": 0.5})


def test_sketch_keeps_cosines():
    generator = torch.Generator().manual_seed(1)
    one, other = torch.randn(2, 100_000, generator=generator)
    near = 0.6 * one + 0.8 * other  # one and other are nearly at right angles
    cosine = torch.nn.functional.cosine_similarity(*(sketch({"w": x, "v": x[:5]}) for x in (one, near)), dim=0)
    assert float(cosine) == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize("settings", [{}, {"clip_norm": 0.5}])
def test_aggregate_of_plain_updates_has_their_numbers_as_they_were_sent(settings):
    aggregator, clients = PlainAggregator(FederationConfig(**settings)), ["a", "b"]
    updates = [update("a", 1.0, 0.0), update("b", 2.0, 0.0)]
    seen = aggregator.aggregate(lambda _requests: iter(updates), TrainRequest(1, THETA), clients).observed
    assert {client: seen[client]["norm"] for client in clients} == {"a": 1.0, "b": 2.0}
    assert {client: seen[client]["cosine"] for client in clients} == pytest.approx({"a": 1.0, "b": 1.0})
