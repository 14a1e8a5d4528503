"""The mean of products by hand on 2 x 2 matrices, and against the SVD of the dense product."""

import pytest
import torch
from tests.parties import mean_of

from fedcollm.errors import UserError
from fedcollm.federation.aggregation.lora import ProductMean, closest, stacked
from fedcollm.federation.aggregation.mean import WeightedMean
from fedcollm.federation.upload_format import first
from fedcollm.messages import Adapter, ClientUpdate

A, B = "q.lora_A.weight", "q.lora_B.weight"


def lora(a: list[list[float]], b: list[list[float]]) -> Adapter:
    return {A: torch.tensor(a), B: torch.tensor(b)}


def product(adapter: Adapter) -> torch.Tensor:
    return adapter[B].double() @ adapter[A].double()


def mean(theta: Adapter, *parts: tuple[Adapter, float]) -> Adapter:
    one = ProductMean(theta)
    for adapter, weight in parts:
        one.add(adapter, weight)
    return one.value()


def random(outputs: int, inputs: int, rank: int, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return {A: torch.randn(rank, inputs, generator=generator), B: torch.randn(outputs, rank, generator=generator)}


# B A is [[2, 0], [0, 0]] and [[0, 0], [0, 4]]; their mean is diag(1, 2)
FIRST, SECOND = lora([[1.0, 0.0]], [[2.0], [0.0]]), lora([[0.0, 1.0]], [[0.0], [4.0]])
RANK_1, RANK_2 = lora([[0.0, 0.0]], [[0.0], [0.0]]), lora([[0.0, 0.0]] * 2, [[0.0] * 2] * 2)


def test_of_the_mean_of_products_the_larger_component_is_kept():
    kept = mean(RANK_1, (FIRST, 1.0), (SECOND, 1.0))
    assert product(kept).tolist() == [[0.0, 0.0], [0.0, 2.0]]
    assert kept[A].abs().tolist() == [[0.0, 1.0]]
    assert kept[B].abs().tolist() == [[0.0], [2.0]]


def test_mean_of_factors_would_be_another_matrix():
    plain = WeightedMean()
    for adapter in (FIRST, SECOND):
        plain.add(adapter, 1.0)
    assert product(plain.value()).tolist() == [[0.5, 0.5], [1.0, 1.0]]


def test_where_the_rank_is_enough_the_mean_is_exact():
    assert torch.allclose(
        product(mean(RANK_2, (FIRST, 1.0), (SECOND, 1.0))), torch.diag(torch.tensor([1.0, 2.0])).double()
    )


def test_products_are_weighted():
    # (3 * [[2, 0], [0, 0]] + 1 * [[0, 0], [0, 4]]) / 4 = diag(1.5, 1)
    kept = mean(RANK_2, (FIRST, 3.0), (SECOND, 1.0))
    assert torch.allclose(product(kept), torch.diag(torch.tensor([1.5, 1.0])).double())
    assert kept[B].norm(dim=0).tolist() == pytest.approx([1.5, 1.0])


def test_one_client_keeps_its_product():
    alone = random(5, 7, 3, seed=0)
    assert torch.allclose(product(mean(alone, (alone, 7.0))), product(alone), atol=1e-6)


@pytest.mark.parametrize(("outputs", "inputs"), [(9, 6), (6, 9), (20, 30)])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_it_is_the_truncated_svd_of_the_dense_product(outputs, inputs, rank):
    clients, weights = [random(outputs, inputs, rank, seed) for seed in range(4)], (5.0, 1.0, 2.0, 4.0)
    dense = sum(weight * product(one) for one, weight in zip(clients, weights, strict=True)) / 12
    u, sigma, vt = torch.linalg.svd(dense)
    kept = mean(clients[0], *zip(clients, weights, strict=True))
    assert torch.allclose(product(kept), u[:, :rank] @ torch.diag(sigma[:rank]) @ vt[:rank], atol=1e-5)
    assert float((dense - product(kept)).square().sum()) == pytest.approx(float(sigma[rank:].square().sum()), abs=1e-4)


def test_columns_are_orthogonal_the_longest_first_and_rows_have_length_one():
    clients = [random(6, 5, 3, seed) for seed in range(3)]
    kept = mean(clients[0], *((one, 1.0) for one in clients))
    gram = kept[B].T @ kept[B]
    assert torch.allclose(gram, torch.diag(gram.diagonal()), atol=1e-5)
    assert gram.diagonal().tolist() == sorted(gram.diagonal().tolist(), reverse=True)
    assert torch.allclose(kept[A] @ kept[A].T, torch.eye(3), atol=1e-6)


def test_product_of_zero_keeps_rows_that_can_be_trained():
    start = lora([[1.0, 2.0, 2.0], [0.0, 1.0, 0.0]], [[0.0, 0.0]] * 3)
    kept = mean(start, (start, 1.0), (start, 1.0))
    assert kept[B].count_nonzero() == 0
    assert torch.allclose(kept[A].norm(dim=1), torch.ones(2))


def test_components_weights_are_over_the_clients_that_have_it():
    theta = lora([[9.0, 9.0]] * 2, [[9.0] * 2] * 2)
    large = lora([[1.0, 0.0], [0.0, 1.0]], [[4.0, 0.0], [0.0, 6.0]])  # diag(4, 6), component by component
    kept = mean(theta, (FIRST, 1.0), (large, 3.0))  # (1 * 2 + 3 * 4) / 4, and 6 as it is
    assert torch.allclose(product(kept), torch.diag(torch.tensor([3.5, 6.0])).double(), atol=1e-6)


def test_component_that_few_have_does_not_shrink_round_by_round():
    theta = start = lora([[1.0, 0.0], [0.0, 1.0]], [[5.0, 0.0], [0.0, 3.0]])
    for _ in range(5):
        theta = mean(theta, *((first(theta, rank), 1.0) for rank in (1, 1, 1, 2)))
    assert torch.allclose(product(theta), product(start), atol=1e-5)


def test_components_that_nobody_has_stay_as_they_were():
    theta = lora([[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]])
    kept = mean(theta, (FIRST, 1.0))  # [[2, 0], [0, 0]] + [[6], [8]] [[3, 4]]
    assert torch.allclose(product(kept), torch.tensor([[20.0, 24.0], [24.0, 32.0]]).double(), atol=1e-5)


def test_rank_above_the_matrixs_own_is_kept_as_a_shape():
    wide = random(2, 2, 3, seed=1)
    kept = mean(wide, (wide, 1.0))
    assert (kept[A].shape, kept[B].shape) == ((3, 2), (2, 3))
    assert torch.allclose(product(kept), product(wide), atol=1e-6)


def test_other_tensors_get_the_plain_mean_and_the_order_of_names_stays():
    theta = {"q.lora_B.bias": torch.zeros(2)} | FIRST
    parts = [({"q.lora_B.bias": torch.tensor(value)} | FIRST, 1.0) for value in ([1.0, 0.0], [3.0, 4.0])]
    kept = mean(theta, *parts)
    assert list(kept) == ["q.lora_B.bias", A, B]
    assert kept["q.lora_B.bias"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_thetas(dtype):
    one = {name: tensor.to(dtype) for name, tensor in FIRST.items()}
    assert {tensor.dtype for tensor in mean(one, (one, 1.0)).values()} == {dtype}


def as_convolution(adapter: Adapter) -> Adapter:
    """The same numbers as a convolution of one channel with a kernel of 1 x 2."""
    return {A: adapter[A].reshape(-1, 1, 1, 2), B: adapter[B].reshape(2, -1, 1, 1)}


def test_convolutions_are_matrices_over_channels_and_kernel():
    kept = mean(as_convolution(RANK_1), (as_convolution(FIRST), 1.0), (as_convolution(SECOND), 1.0))
    assert kept[A].abs().tolist() == [[[[0.0, 1.0]]]]
    assert kept[B].abs().tolist() == [[[[0.0]]], [[[2.0]]]]
    whole = mean(as_convolution(RANK_2), (as_convolution(FIRST), 1.0), (as_convolution(SECOND), 3.0))
    assert (whole[A].shape, whole[B].shape) == ((2, 1, 1, 2), (2, 2, 1, 1))
    # B A is [[2, 0], [0, 0]] with weight 1 and [[0, 0], [0, 4]] with weight 3
    kernel = whole[B].flatten(1) @ whole[A].flatten(1)
    torch.testing.assert_close(kernel, torch.tensor([[0.5, 0.0], [0.0, 3.0]]))


def test_mean_of_convolutions_computes_the_mean_of_what_they_compute():
    generator = torch.Generator().manual_seed(0)
    first, second, theta = (
        {A: torch.randn(rank, 3, 3, 3, generator=generator), B: torch.randn(5, rank, 1, 1, generator=generator)}
        for rank in (2, 2, 4)
    )
    theta[B].zero_()  # it supplies the components that no client has
    images = torch.randn(2, 3, 6, 6, generator=generator)

    def outputs(adapter: Adapter) -> torch.Tensor:
        return torch.conv2d(torch.conv2d(images, adapter[A], padding=1), adapter[B])

    kept = mean(theta, (first, 1.0), (second, 1.0))
    torch.testing.assert_close(outputs(kept), (outputs(first) + outputs(second)) / 2, rtol=1e-4, atol=1e-4)


def test_convolutions_in_groups_are_refused():
    grouped = {"c.lora_A.weight": torch.zeros(4, 2, 3, 3), "c.lora_B.weight": torch.zeros(4, 2, 1, 1)}
    with pytest.raises(UserError, match=r"tensor c.lora_B.weight .* in groups. Set federation.aggregation: mean"):
        ProductMean(grouped)


def test_stacked_factors_give_the_weighted_mean():
    pairs = [(one[B], one[A]) for one in (FIRST, SECOND)]
    left, right = stacked(pairs, [1.0, 3.0], (RANK_1[B], RANK_1[A]))
    assert (left @ right).tolist() == [[0.5, 0.0], [0.0, 3.0]]
    b, a = closest(left, right, 1)
    assert torch.allclose(b @ a, torch.tensor([[0.0, 0.0], [0.0, 3.0]]).double())


def test_aggregate_folds_numbers_beside_it():
    updates = [ClientUpdate("a", 1, FIRST, 1, 1.0), ClientUpdate("b", 1, SECOND, 3, 2.0)]
    whole = mean_of(updates, rule=ProductMean(RANK_2))
    assert torch.allclose(product(whole.adapter), torch.diag(torch.tensor([0.5, 3.0])).double())
    assert whole.loss == 1.75
    assert whole.participants == ("a", "b")
