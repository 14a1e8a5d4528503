"""Cutting layers and MLP neurons."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV3Config,
    DiffLlamaConfig,
    GPT2Config,
    GPTNeoXConfig,
    JambaConfig,
    Llama4TextConfig,
    LlamaConfig,
    OPTConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    SmolLM3Config,
)

from fedcollm.errors import UserError
from fedcollm.models.pretrained import load_causal_lm
from fedcollm.models.pruning import (
    even_layers,
    gated_mlps,
    kept_layers,
    neurons_to_keep,
    only_layers,
    prune_layers,
    prune_neurons,
    rebuilt,
)

TOKENS = torch.tensor([[2, 8, 11, 5, 9]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


# --- which layers ---


@pytest.mark.parametrize(
    ("total", "keep", "layers"),
    [
        (30, 10, [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]),  # steps of 29/9 = 3.22
        (5, 3, [0, 2, 4]),
        (4, 2, [0, 3]),
        (4, 4, [0, 1, 2, 3]),
        (7, 1, [0]),
        (1, 1, [0]),
    ],
)
def test_even_layers_by_hand(total, keep, layers):
    assert even_layers(total, keep) == layers


def test_even_layers_are_never_taken_twice():
    for total in range(1, 50):
        for keep in range(1, total + 1):
            assert len(set(even_layers(total, keep))) == keep


@pytest.mark.parametrize("keep", [0, -1, 31])
def test_number_of_layers_that_cannot_be_kept_is_the_users_error(keep):
    with pytest.raises(UserError, match=f"layers: {keep} .*give a number from 1 to 30"):
        even_layers(30, keep)


@pytest.mark.parametrize("layers", [[], [0, 0], [2, 1], [0, 4], [-1, 2]])
def test_indices_that_are_no_layers_are_the_users_error(layers):
    with pytest.raises(UserError, match="indices from 0 to 3"):
        kept_layers(4, layers)


# --- pruning ---

SHAPE = {
    "vocab_size": 16,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 5,
    "max_position_embeddings": 32,
}
TOKEN_IDS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
FAMILIES = {
    "llama": LlamaConfig(**SHAPE, intermediate_size=32),
    "qwen2": Qwen2Config(**SHAPE, intermediate_size=32, num_key_value_heads=2),
    "gpt2": GPT2Config(vocab_size=16, n_embd=16, n_head=2, n_layer=5, n_positions=32, **TOKEN_IDS),
    "opt": OPTConfig(**SHAPE, ffn_dim=32, word_embed_proj_dim=16, **TOKEN_IDS),
    "bloom": BloomConfig(vocab_size=16, hidden_size=16, n_head=2, n_layer=5, **TOKEN_IDS),
    "neox": GPTNeoXConfig(**SHAPE, intermediate_size=32),
    "smollm3": SmolLM3Config(**SHAPE, intermediate_size=32, num_key_value_heads=2, pad_token_id=0),
}


def family(name: str):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[name])).eval()


def test_pruning_keeps_the_weights_of_first_middle_and_last_layer():
    model = family("llama")
    before = [layer.mlp.up_proj.weight.clone() for layer in model.model.layers]
    embedding = model.model.embed_tokens.weight.clone()
    pruned = prune_layers(model, 3)
    assert pruned.config.num_hidden_layers == 3
    assert len(pruned.model.layers) == 3
    for kept, index in zip(pruned.model.layers, [0, 2, 4], strict=True):
        assert torch.equal(kept.mlp.up_proj.weight, before[index])
    assert torch.equal(pruned.model.embed_tokens.weight, embedding)


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_pruned_model_has_the_logits_of_the_pruned_one(name, tmp_path):
    whole = family(name)
    before = logits(whole)
    pruned = prune_layers(whole, 3)
    pruned.save_pretrained(tmp_path / "pruned")
    loaded = load_causal_lm(str(tmp_path / "pruned"), torch.float32)
    torch.testing.assert_close(logits(loaded), logits(pruned))
    assert not torch.equal(logits(loaded), before)


def test_pruning_keeps_the_kinds_of_the_layers_that_stay():
    model = family("qwen2")
    model.config.layer_types = [
        "full_attention",
        "sliding_attention",
        "full_attention",
        "sliding_attention",
        "sliding_attention",
    ]
    assert prune_layers(model, 2).config.layer_types == ["full_attention", "sliding_attention"]


def test_pruning_keeps_which_layers_have_no_positions(tmp_path):
    model = family("smollm3")  # every fourth layer has none
    assert model.config.no_rope_layers == [1, 1, 1, 0, 1]
    prune_layers(model, [0, 3]).save_pretrained(tmp_path)
    loaded = load_causal_lm(str(tmp_path), torch.float32)
    assert loaded.config.no_rope_layers == [1, 0]
    torch.testing.assert_close(logits(loaded), logits(model))


class Stack(nn.Module):
    """Two layers of two experts each."""

    def __init__(self, **config: object):
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.layers = nn.ModuleList(nn.ModuleDict({"experts": nn.ModuleList([nn.Identity()] * 2)}) for _ in range(2))


def test_experts_in_a_layer_are_no_layers():
    model = Stack(num_hidden_layers=2)
    with only_layers(model, [1]):
        assert [len(layer["experts"]) for layer in model.layers] == [2]
    assert [len(layer["experts"]) for layer in model.layers] == [2, 2]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 3}, "Stack has no list of its 3 layers"),
        ({"text_config": None}, "Stack does not say how many layers it has"),
    ],
)
def test_a_model_whose_layers_are_not_found_is_refused(config, message):
    with pytest.raises(UserError, match=f"{message}.*Set layers: null"):
        prune_layers(Stack(**config), 1)


def test_a_model_that_could_not_be_loaded_again_is_refused():
    hybrid = JambaConfig(
        **SHAPE,
        intermediate_size=32,
        num_key_value_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=2,
        use_mamba_kernels=False,
        mamba_d_state=4,
        mamba_dt_rank=4,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hybrid)
    with pytest.raises(UserError, match="configuration does not describe what is left"):
        prune_layers(model, [0, 2, 4])  # the kind of a layer follows from its index


def test_only_some_layers_compute_and_then_all_again(llama):
    whole = logits(llama)
    cut = logits(prune_layers(copy.deepcopy(llama), [1]))
    with only_layers(llama, [1]):
        assert torch.equal(logits(llama), cut)
    assert torch.equal(logits(llama), whole)
    assert llama.config.num_hidden_layers == 2


def test_all_layers_are_back_after_an_error(llama):
    whole = logits(llama)
    with pytest.raises(KeyError), only_layers(llama, [0]):
        raise KeyError
    assert torch.equal(logits(llama), whole)


# --- neurons ---


def test_neurons_that_are_never_active_can_go_without_a_trace(llama, tmp_path):
    for mlp in gated_mlps(llama):  # 32 neurons each; those from 16 on give nothing
        mlp.down_proj.weight.data[:, 16:] = 0
    before = logits(llama)
    prune_neurons(llama, [torch.arange(16)] * 2)
    torch.testing.assert_close(logits(llama), before)
    assert llama.config.intermediate_size == 16
    llama.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(load_causal_lm(str(tmp_path), torch.float32)), before)


def test_the_most_important_neurons_stay_in_their_order():
    importance = torch.zeros(16)
    importance[[3, 12]] = 1.0
    importance[[0, 5, 7, 9, 14, 15]] = 0.5
    assert neurons_to_keep(importance, 0.5).tolist() == [0, 3, 5, 7, 9, 12, 14, 15]


def test_a_model_without_gated_mlps_cannot_lose_neurons():
    with pytest.raises(UserError, match="mlp_share"):
        gated_mlps(family("gpt2"))


# --- as it will be loaded again ---

BY_INDEX = {
    "gpt2 by index": GPT2Config(
        vocab_size=16, n_embd=16, n_head=2, n_layer=5, n_positions=32, scale_attn_by_inverse_layer_idx=True,
        initializer_range=0.5, **TOKEN_IDS,
    ),
    "diffllama": DiffLlamaConfig(**SHAPE, intermediate_size=32, num_key_value_heads=2, initializer_range=0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", [*BY_INDEX, *FAMILIES])
def test_a_rebuilt_model_is_the_one_that_is_loaded_again(name, tmp_path):
    torch.manual_seed(0)
    model = prune_layers(AutoModelForCausalLM.from_config(copy.deepcopy((BY_INDEX | FAMILIES)[name])).eval(), [0, 3])
    built = rebuilt(model)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(built), logits(load_causal_lm(str(tmp_path), torch.float32, "default")))
    assert torch.allclose(logits(built), logits(model)) == (name not in BY_INDEX)


def test_a_rebuilt_model_keeps_its_dtype_attention_and_place(llama):
    llama.config._attn_implementation, llama.name_or_path = "eager", "somewhere"
    built = rebuilt(prune_layers(llama.to(torch.bfloat16), 1))
    assert (built.dtype, built.config._attn_implementation, built.name_or_path) == (
        torch.bfloat16,
        "eager",
        "somewhere",
    )
    assert built.get_output_embeddings().weight is built.get_input_embeddings().weight


EXPERTS = SHAPE | {"intermediate_size": 32, "num_key_value_heads": 2, "pad_token_id": 0}
SEVERAL_KINDS = {
    "shared experts of Qwen2-MoE": Qwen2MoeConfig(
        **EXPERTS, moe_intermediate_size=16, shared_expert_intermediate_size=48, num_experts=4, num_experts_per_tok=2
    ),
    "dense and shared experts of DeepSeek": DeepseekV3Config(
        **EXPERTS, moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    ),
    "shared experts of Llama 4": Llama4TextConfig(
        **EXPERTS, head_dim=8, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=8
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEVERAL_KINDS)
def test_neurons_of_several_kinds_of_mlps_are_not_cut(name):
    model = AutoModelForCausalLM.from_config(SEVERAL_KINDS[name])
    with pytest.raises(UserError, match=r"mlp_share: .* does not describe what is left. Set mlp_share: 1"):
        prune_neurons(model, [torch.arange(8)] * len(gated_mlps(model)))
