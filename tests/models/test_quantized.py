"""Packed linear layers: what is packed, how far the weights and logits move, and that merging starts from them."""

import builtins

import pytest
import torch
from tests.conftest import tiny_llama
from tests.parties import add_adapter
from torch import nn

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.models.adapters import parameter_counts
from fedcollm.models.fused.patch import fuse
from fedcollm.models.quantized import BYTES, frozen_linear, quantization_of, quantize, round_trip
from fedcollm.runs.identity import base_digests

TOKENS = torch.tensor([[2, 3, 4, 5], [6, 7, 8, 9]])
KINDS = ["int8"]


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes", reason="fedcollm[quantized] is not installed")


def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=TOKENS, use_cache=False).logits


def test_linear_layers_except_head_and_adapter_are_packed():
    plain = [name for name, _ in frozen_linear(tiny_llama())]
    assert len(plain) == 7 * tiny_llama().config.num_hidden_layers
    assert plain[0] == "model.layers.0.self_attn.q_proj"
    adapted = [name for name, _ in frozen_linear(add_adapter(tiny_llama(), rank=4))]
    assert adapted == [f"base_model.model.{name}.base_layer" for name in plain]


@pytest.mark.parametrize("kind", KINDS)
def test_packed_model_computes_what_its_unpacked_weights_do(bitsandbytes, kind):
    packed, unpacked, whole = tiny_llama(), tiny_llama(), tiny_llama()
    quantize(packed, kind)
    round_trip(unpacked, kind)
    assert (quantization_of(packed), quantization_of(unpacked)) == (kind, None)
    expected = logits(unpacked)
    torch.testing.assert_close(logits(packed), expected, atol=2e-3, rtol=2e-3)
    assert (expected - logits(whole)).abs().max() > 1e-6
    for one, other in zip(whole.parameters(), unpacked.parameters(), strict=True):
        assert (one - other).abs().max() <= 0.005 * one.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_on_packed_layers_trains_and_fusing_changes_nothing(bitsandbytes, kind):
    models = []
    for _ in range(2):
        network = tiny_llama()
        quantize(network, kind)
        models.append(add_adapter(network, seed=3, rank=4))
    fuse(models[1])
    assert parameter_counts(models[0]) == parameter_counts(add_adapter(tiny_llama(), seed=3, rank=4))
    gradients = []
    for model in models:
        nn.functional.cross_entropy(logits(model).flatten(0, 1), TOKENS.flatten()).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert any(gradient.abs().sum() > 0 for gradient in gradients[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    names = dict(base_digests("slm", models[0]))
    assert f"weights of slm in {kind}" in names
    assert names == dict(base_digests("slm", models[1]))


def test_missing_library_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "bitsandbytes":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"quantization: int8 needs bitsandbytes.*fedcollm\[quantized\]"):
        quantize(tiny_llama(), "int8")


def test_cores_need_whole_weights():
    with pytest.raises(ValueError, match=r"quantization int8 hides.*adapter\.core"):
        ModelConfig(quantization="int8", adapter={"core": True})


def test_bytes_per_weight():
    assert BYTES == {"int8": 1.0}
