import torch

from fedcollm.models.fused.lora import product


def test_product_by_hand():
    x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    assert product(x, weight).tolist() == [[11.0, 17.0, 23.0]]
    assert product(x, weight, torch.tensor([1.0, 0.0, -1.0])).tolist() == [[12.0, 17.0, 22.0]]
    assert product(torch.tensor([[1.0, 0.0, 2.0]]), weight.t()).tolist() == [[17.0, 20.0]]
    assert product(torch.empty(0, 2), weight).shape == (0, 3)
