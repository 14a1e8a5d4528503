"""Tiny networks of every causal language model of transformers that builds from a small configuration."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

#: Number of tokens that every network knows.
VOCABULARY = 64

#: Sizes by every name that a configuration may have for them; those that a configuration lacks are left out.
# fmt: off
SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "is_decoder": True,
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "intermediate_size": 64, "ffn_dim": 64, "d_ff": 64,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "decoder_layers": 2, "encoder_layers": 1,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "decoder_ffn_dim": 64, "encoder_ffn_dim": 64,
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "max_seq_len": 64,
    "sliding_window": 4, "window_size": 4, "attention_types": [[["global", "local"], 1]],
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "n_routed_experts": 4, "n_shared_experts": 1, "shared_intermediate_size": 64,
    "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2, "state_size": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "block_multiple_of": 8,
}
# fmt: on

_CONVOLUTIONS = ["conv", "full_attention", "conv", "full_attention"]
_NESTED = {name: SIZES[name] for name in ("hidden_size", "intermediate_size", "vocab_size", "head_dim")} | {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "sliding_window": 4,
}
_EYES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}

#: Type of a model to what its configuration needs besides, or in place of, `SIZES`.
FURTHER: Mapping[str, Mapping[str, Any]] = {
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "deepseek_v3": {"head_dim": 4, "num_key_value_heads": 4},
    "glm4_moe_lite": {"head_dim": 4, "num_key_value_heads": 4},
    "longcat_flash": {"head_dim": 4, "num_key_value_heads": 4},
    "youtu": {"head_dim": 4, "num_key_value_heads": 4},
    "lfm2": {"layer_types": _CONVOLUTIONS, "num_hidden_layers": 4},
    "lfm2_moe": {"layer_types": _CONVOLUTIONS, "num_hidden_layers": 4, "num_dense_layers": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "num_local_experts": 0},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "gemma3": {
        "text_config": _NESTED,
        "vision_config": {**_EYES, "image_size": 28, "patch_size": 14},
        "mm_tokens_per_image": 4,
    },
}


def build(kind: str, **changes: Any) -> Any:
    """Return a network of a type with random weights that are large enough to tell its logits apart.

    Args:
        kind: the type, `config.model_type`.
        changes: further values of its configuration.
    """
    default = CONFIG_MAPPING[kind]()
    known = {*default.to_dict(), *getattr(default, "attribute_map", {})}
    sizes = {name: value for name, value in SIZES.items() if name in known}
    shape = AutoConfig.for_model(kind, **{**sizes, **FURTHER.get(kind, {}), **changes})
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(shape)
    assert sum(parameter.numel() for parameter in outline.parameters()) < 5_000_000  # what would fill the memory
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(shape)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() >= 2 and "A_log" not in name:
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    return network.eval()
