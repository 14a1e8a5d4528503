"""Which layer of the LLM a tensor of the SLM stands for, and what is moved there, on adapters of one value each."""

import pytest
import torch

from fedcollm.federation.layer_transfer import apply_delta, in_llm, init_from_slm

KEPT = [0, 2]


def name(layer: int) -> str:
    return f"base_model.model.model.layers.{layer}.mlp.up_proj.lora_B.weight"


def adapter(*values: float) -> dict[str, torch.Tensor]:
    """One tensor a layer."""
    return {name(layer): torch.tensor([value]) for layer, value in enumerate(values)}


def plain(values: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    return {key: tensor.tolist() for key, tensor in values.items()}


@pytest.mark.parametrize(
    ("slm", "llm"),
    [
        ("base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight", "model.layers.7.self_attn.q_proj"),
        ("base_model.model.model.decoder.layers.1.fc1.lora_A.weight", "model.decoder.layers.7.fc1"),  # OPT
        ("base_model.model.transformer.h.1.attn.c_attn.lora_A.weight", "transformer.h.7.attn.c_attn"),  # GPT-2
        ("base_model.model.model.layers.1.mlp.experts.0.up_proj.lora_A.weight", "model.layers.7.mlp.experts.0.up_proj"),
        ("base_model.model.model.embed_tokens.lora_A.weight", "model.embed_tokens"),  # of no layer
    ],
)
def test_tensor_of_the_llm_is_that_of_the_kept_layer(slm, llm):
    assert in_llm(slm, [3, 7]) == f"base_model.model.{llm}.lora_A.weight"


def test_layer_after_the_ninth_has_all_its_digits():
    assert in_llm(name(11), list(range(0, 60, 5))) == name(55)


def test_rooted_llm_has_the_slms_values_in_the_kept_layers_and_its_own_elsewhere():
    llm, slm = adapter(1.0, 2.0, 3.0), adapter(10.0, 20.0)
    assert plain(init_from_slm(llm, slm, KEPT)) == plain(adapter(10.0, 2.0, 20.0))
    assert plain(llm) == plain(adapter(1.0, 2.0, 3.0))


def test_rooted_llm_shares_no_memory_with_the_slm():
    slm = adapter(10.0, 20.0)
    llm = init_from_slm(adapter(1.0, 2.0, 3.0), slm, KEPT)
    slm[name(1)].zero_()
    assert plain(llm) == plain(adapter(10.0, 2.0, 20.0))


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (1.0, (1.5, 2.0, -1.0)),  # 1 + 1/2, untouched, 3 - 4
        (0.25, (1.125, 2.0, 2.0)),
    ],
)
def test_share_of_the_change_is_added_to_the_kept_layers(share, expected):
    llm = adapter(1.0, 2.0, 3.0)
    moved = apply_delta(llm, adapter(10.0, 20.0), adapter(10.5, 16.0), KEPT, share)
    assert plain(moved) == plain(adapter(*expected))
    assert plain(llm) == plain(adapter(1.0, 2.0, 3.0))


def test_whole_change_is_carried_by_default():
    assert plain(apply_delta(adapter(1.0), adapter(0.0), adapter(2.0), [0])) == plain(adapter(3.0))
