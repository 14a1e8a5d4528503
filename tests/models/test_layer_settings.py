"""What a configuration says of its layers after a cut, by hand and on tiny networks of many architectures."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.modalities.text.tiny_architectures import build
from transformers import AutoModelForCausalLM

from fedcollm.errors import UserError
from fedcollm.models.layer_settings import after_cut
from fedcollm.models.pruning import only_layers, prune_layers

TOKENS = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10, 11]])  # more than the window of 4
TWO, FOUR = ["sliding_attention", "full_attention"], ["sliding_attention", "full_attention"] * 2
LINEAR = ["linear_attention", "full_attention"] * 2


def test_each_kind_of_key_by_hand():
    config = SimpleNamespace(
        layer_types=["a", "b", "c", "d"],
        no_rope_layers=[1, 1, 1, 0],
        mlp_layer_types=["dense", "sparse"],  # of another length, so not of these layers
        time_step_limit=[0.0, 1.0, 2.0, 3.0],
        hybrid_override_pattern="M-*E",
        attn_layer_indices=[1, 3],
        mlp_only_layers=[],
        moe_layers=None,
        first_k_dense_replace=2,
        max_window_layers=4,
        num_kv_shared_layers=3,
        scale_depth=1.0,
        hidden_size=4,
    )
    assert after_cut(config, 4, [0, 3]) == {
        "layer_types": ["a", "d"],
        "no_rope_layers": [1, 0],
        "hybrid_override_pattern": "ME",
        "attn_layer_indices": [1],
        "mlp_only_layers": [],
        "first_k_dense_replace": 1,
        "max_window_layers": 2,
        "num_kv_shared_layers": 1,
        "scale_depth": 0.5**0.5,
    }


#: Type of a model to further values of its configuration of four layers, and to what it says after layers 0 and 3 stay.
CUT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "afmoe": ({"layer_types": FOUR}, {"layer_types": TWO}),
    "bamba": ({"attn_layer_indices": [1, 3]}, {"attn_layer_indices": [1]}),
    "bloom": ({}, {}),
    "cohere2": ({"layer_types": FOUR}, {"layer_types": TWO}),
    "deepseek_v3": ({"n_group": 1, "topk_group": 1, "first_k_dense_replace": 3}, {}),
    "dots1": ({"n_group": 1, "topk_group": 1, "first_k_dense_replace": 2}, {"first_k_dense_replace": 1}),
    "ernie4_5_moe": ({"moe_layer_start_index": 2}, {"moe_layer_start_index": 1}),
    "exaone4": ({"layer_types": FOUR}, {"layer_types": TWO}),
    "falcon": ({}, {}),
    "gemma2": ({"layer_types": FOUR}, {"layer_types": TWO}),
    "gemma3_text": ({"layer_types": FOUR}, {"layer_types": TWO}),
    "glm4_moe": ({"n_group": 1, "topk_group": 1, "first_k_dense_replace": 2}, {"first_k_dense_replace": 1}),
    "gpt_oss": ({"layer_types": FOUR}, {"layer_types": TWO}),
    "granitemoehybrid": ({"layer_types": ["mamba", "attention"] * 2}, {"layer_types": LINEAR[:2]}),
    "lfm2_moe": ({"num_dense_layers": 2}, {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"]}),
    "llama": ({}, {}),
    "llama4_text": ({"attention_chunk_size": 8, "moe_layers": [1, 3]}, {"moe_layers": [1]}),
    "minicpm3": ({"scale_depth": 2.0}, {"scale_depth": 2**0.5}),
    "mixtral": ({}, {}),
    "nemotron_h": ({}, {}),
    "olmo3": ({"layer_types": FOUR}, {"layer_types": TWO}),
    "opt": ({}, {}),
    "phi3": ({}, {}),
    "qwen2": ({"use_sliding_window": True, "max_window_layers": 2}, {"layer_types": TWO[::-1]}),
    "qwen2_moe": ({"mlp_only_layers": [3]}, {"mlp_only_layers": [1]}),
    "qwen3_moe": ({"mlp_only_layers": [0, 1]}, {"mlp_only_layers": [0]}),
    "qwen3_next": ({"layer_types": LINEAR}, {"layer_types": LINEAR[:2]}),
    "smollm3": ({}, {"no_rope_layers": [1, 0]}),
    "stablelm": ({}, {}),
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def passed_over(module: Any, given: Any, named: Any, result: Any) -> Any:
    """Return what a layer was given in place of what it made of it."""
    hidden = given[0] if given else named["hidden_states"]
    return (hidden, *result[1:]) if isinstance(result, tuple) else hidden


def layers_of(model: Any) -> Any:
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 4)


@pytest.mark.parametrize("kind", CUT)
def test_a_cut_model_that_is_loaded_again_computes_with_the_layers_that_stay(kind: str, tmp_path: Any):
    changes, said = CUT[kind]
    model = build(kind, num_hidden_layers=4, **changes)
    hooks = [layers_of(model)[i].register_forward_hook(passed_over, with_kwargs=True) for i in (1, 2)]
    expected = logits(model)
    for hook in hooks:
        hook.remove()
    with only_layers(model, [0, 3]):
        if kind != "minicpm3":  # whose layers know the number of the others
            torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    prune_layers(model, [0, 3]).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-5)
    assert {name: getattr(loaded.config, name) for name in said} == said
    assert loaded.config.num_hidden_layers == 2


def test_layers_that_share_weights_are_not_cut():
    types = ["mamba", "hybrid", "mamba", "hybrid"]
    model = build("zamba2", num_hidden_layers=4, layers_block_type=types)
    with pytest.raises(UserError, match="layers of Zamba2ForCausalLM share weights"):
        prune_layers(model, [0, 3])


def test_a_model_with_two_numbers_of_layers_is_refused():
    class Config:
        num_hidden_layers = property(lambda self: 2, lambda self, value: Config.refuse())

        @staticmethod
        def refuse() -> None:  # as ProphetNet does
            raise NotImplementedError

    class Twofold(torch.nn.Module):
        config = Config()

    model = Twofold()
    model.add_module("layers", torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()]))
    with pytest.raises(UserError, match="Twofold has no single number of layers"):
        prune_layers(model, [0])
