"""Means by hand: of every value, and of every component of LoRA over those that have it."""

import pytest
import torch

from fedcollm.federation.aggregation.mean import ComponentMean, WeightedMean
from fedcollm.federation.upload_format import first, truncated
from fedcollm.messages import Adapter


def lora(a: list[list[float]], b: list[list[float]]) -> Adapter:
    return {"q.lora_A.weight": torch.tensor(a), "q.lora_B.weight": torch.tensor(b)}


THETA = lora([[1.0, 1.0], [2.0, 2.0], [9.0, 9.0]], [[1.0, 2.0, 8.0]])


def mean(*parts: tuple[Adapter, float], theta: Adapter = THETA) -> dict[str, list]:
    """Values of the mean over components, by tensor."""
    one = ComponentMean(theta)
    for adapter, weight in parts:
        one.add(adapter, weight)
    return {name.split(".")[1]: tensor.tolist() for name, tensor in one.value().items()}


def test_component_is_a_mean_over_the_clients_that_have_it():
    small = lora([[4.0, 0.0]], [[8.0]])  # rank 1
    large = lora([[0.0, 4.0], [5.0, 6.0]], [[0.0, 7.0]])  # rank 2
    # component 1: (1 * small + 3 * large) / 4; component 2: large's own; component 3: nobody's, so θ's
    assert mean((small, 1.0), (large, 3.0)) == {
        "lora_A": [[1.0, 3.0], [5.0, 6.0], [9.0, 9.0]],
        "lora_B": [[2.0, 7.0, 8.0]],
    }


def test_component_of_one_client_does_not_shrink_round_by_round():
    theta = THETA
    for _ in range(3):
        one = ComponentMean(theta)
        for rank in (1, 1, 1, 3):
            one.add(first(theta, rank), 1.0)
        theta = one.value()
    assert {name: tensor.tolist() for name, tensor in theta.items()} == {n: t.tolist() for n, t in THETA.items()}


def test_tensor_without_components_is_averaged_as_a_whole():
    theta = {"q.lora_B.bias": torch.zeros(2), "head.weight": torch.zeros(1, 2)}
    parts = [
        ({"q.lora_B.bias": torch.tensor([1.0, 2.0]), "head.weight": torch.tensor([[4.0, 0.0]])}, 1.0),
        ({"q.lora_B.bias": torch.tensor([5.0, 2.0]), "head.weight": torch.tensor([[0.0, 4.0]])}, 3.0),
    ]
    one = ComponentMean(theta)
    for adapter, weight in parts:
        one.add(adapter, weight)
    assert {name: tensor.tolist() for name, tensor in one.value().items()} == {
        "q.lora_B.bias": [4.0, 2.0],
        "head.weight": [[1.0, 3.0]],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_full_ranks_it_is_the_plain_mean_bit_for_bit(dtype):
    torch.manual_seed(0)
    adapters = [{"q.lora_A.weight": torch.randn(3, 5, dtype=dtype), "q.lora_B.weight": torch.randn(4, 3, dtype=dtype)}
                for _ in range(3)]  # fmt: skip
    plain, by_component = WeightedMean(), ComponentMean(adapters[0])
    for one in (plain, by_component):
        for adapter, weight in zip(adapters, (7.0, 1.0, 3.0), strict=True):
            one.add(adapter, weight)
    for name, tensor in plain.value().items():
        assert torch.equal(by_component.value()[name], tensor)
        assert tensor.dtype == dtype


def test_zero_padding_would_shrink_what_few_have():
    plain = WeightedMean()
    for rank in (1, 1, 1, 3):
        plain.add(truncated(THETA, rank), 1.0)
    assert plain.value()["q.lora_B.weight"].tolist() == [[1.0, 0.5, 2.0]]
