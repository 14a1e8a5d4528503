import pytest
import torch

from fedcollm.models.fused.layers import Grid, normalize, normalize_backward, rotate


def test_norm_by_hand():
    normal, inverse = normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), epsilon=0.5)  # mean of squares 12.5 and 0
    assert inverse.flatten().tolist() == pytest.approx([13**-0.5, 2**0.5])
    assert normal.flatten().tolist() == pytest.approx([3 * 13**-0.5, 4 * 13**-0.5, 0.0, 0.0])


def test_gradient_of_norm_is_that_of_its_formula():
    torch.manual_seed(0)
    x, gradient = torch.randn(3, 5, dtype=torch.float64, requires_grad=True), torch.randn(3, 5, dtype=torch.float64)
    y = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    (expected,) = torch.autograd.grad(y, x, gradient)
    got = normalize_backward(gradient, *normalize(x.detach(), 1e-5))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def test_quarter_turn_and_back():
    x, zero, one = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
    turned, back = torch.empty_like(x), torch.empty_like(x)
    rotate(x, zero, one, turned)
    assert turned.tolist() == [[[-3.0, -4.0, 1.0, 2.0]]]  # the pairs are (1, 3) and (2, 4)
    rotate(turned, zero, one, back, direction=-1)
    assert back.tolist() == x.tolist()


def test_places_by_hand():
    grid = Grid(2, 2, torch.tensor([0, 3]))
    places = grid.spread(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert places.tolist() == [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [3.0, 4.0]]
    assert grid.gather(places).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    # two sequences, two columns, two heads of width 1
    assert grid.heads(places, 1).tolist() == [[[[1.0], [0.0]], [[2.0], [0.0]]], [[[0.0], [3.0]], [[0.0], [4.0]]]]
    assert Grid(2, 1).spread(places) is places
    assert Grid(2, 1).gather(places) is places
