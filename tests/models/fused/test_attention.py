import pytest
import torch
from tests.conftest import tiny_llama
from transformers import AttentionInterface

from fedcollm.models.fused.attention import GROUPED, LONGEST, grouped_attention


def inputs(heads: int = 4, key_heads: int = 2, length: int = 5) -> list[torch.Tensor]:
    """Query [2, heads, length, 3], key and value [2, key_heads, length, 3], in transformers' strides."""
    torch.manual_seed(0)
    shapes = [(2, length, h, 3) for h in (heads, key_heads, key_heads)]
    return [torch.randn(shape).transpose(1, 2).requires_grad_() for shape in shapes]


def causal(length: int) -> torch.Tensor:
    return torch.full((length, length), torch.finfo(torch.float32).min).triu(1).expand(2, 1, length, length)


def by_definition(query, key, value, mask):
    """softmax(q kᵀ / √3 + mask) v, each key head repeated for its query heads: [B, N, H, d]."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    weights = (query @ key.transpose(2, 3) / 3**0.5 + mask).softmax(-1)
    return (weights @ value).transpose(1, 2)


def test_one_head_by_hand():
    # scores ln 3 and 0, weights 3/4 and 1/4
    query, key = torch.tensor([[[[1.0]]]]), torch.tensor([[[[3.0]], [[1.0]]]]).log().view(1, 1, 2, 1)
    value = torch.tensor([4.0, 8.0]).view(1, 1, 2, 1)
    output, weights = grouped_attention(torch.nn.Module(), query, key, value, None, scaling=1.0)
    assert output.flatten().tolist() == pytest.approx([5.0])
    assert weights is None


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 2), (3, 1), (2, 2)])
def test_values_and_gradients_are_those_of_the_definition(heads, key_heads):
    tensors = inputs(heads, key_heads)
    ours, _ = grouped_attention(torch.nn.Module(), *tensors, causal(5))
    expected = by_definition(*tensors, causal(5))
    torch.testing.assert_close(ours, expected)
    seed = torch.randn_like(expected)
    got, wanted = (torch.autograd.grad(y, tensors, seed) for y in (ours, expected))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_long_inputs_and_dropout_are_left_to_torch(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "fedcollm.models.fused.attention._fused_attention",
        lambda *args, dropout, **kwargs: calls.append((args[1].shape[2], dropout)) or (None, None),
    )
    module = torch.nn.Module()
    grouped_attention(module, *inputs(length=LONGEST), None)
    grouped_attention(module, *inputs(length=LONGEST + 1), None)
    grouped_attention(module, *inputs(), None, dropout=0.1)
    assert calls == [(1025, 0.0), (5, 0.1)]


def test_model_gives_what_it_gives_with_eager_attention():
    assert GROUPED in AttentionInterface().valid_keys()
    model, tokens = tiny_llama(), torch.tensor([[0, 0, 3, 4, 5], [2, 3, 4, 5, 6]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    rows = {}
    for kind in ("eager", GROUPED):
        model.set_attn_implementation(kind)
        rows[kind] = model(tokens, attention_mask=mask).logits[:, 2:]
    torch.testing.assert_close(rows[GROUPED], rows["eager"])
