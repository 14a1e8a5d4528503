"""Which architectures of transformers compute the same logits in a padded batch as for each sequence alone.

Every type in these tables is tested with a tiny network (`tests/modalities/text/test_architectures.py`). One that is in
none of them reads each sequence by itself, which is slow and always right.
"""

import math
from typing import Any

from fedcollm.errors import UserError

# fmt: off
#: Types (`config.model_type`) whose attention obeys any mask over pairs of columns, so that answers can share a prompt,
#: as long as their layers are all of attention and no window is shorter than the sequences.
BRANCHING = frozenset({
    "afmoe", "apertus", "arcee", "aria_text", "biogpt", "bitnet", "codegen", "cohere", "cohere2", "cohere2_moe",
    "ctrl", "cwm", "deepseek_v3", "diffllama", "doge", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe",
    "flex_olmo", "flint", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma4_unified_text", "glm", "glm4",
    "glm4_moe", "glm4_moe_lite", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj",
    "granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared", "helium", "hrm_text",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hy_v4", "hyperclovax", "internlm3", "iquestcoder", "jais2",
    "jetmoe", "laguna", "llama", "llama4_text", "longcat_flash", "mellum", "mimo_v2_flash", "minimax_m2",
    "minimax_m3_vl_text", "ministral", "ministral3", "mistral", "mixtral", "moshi", "nanochat", "nemotron", "olmo",
    "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3",
    "qwen3_moe", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2", "vaultgemma", "xglm", "youtu",
})

#: Types that need transformers' own mask of padding, [B, N]: windows, convolutions, states or ALiBi depend on it.
PADDED = frozenset({
    "bailing_hybrid", "bamba", "beam", "bloom", "deepseek_v4", "falcon", "falcon_mamba", "gpt_neo",
    "granitemoehybrid", "inkling2_text", "inkling_text", "jamba", "kolibri1", "lfm2", "lfm2_moe", "lfm3", "mamba",
    "minimax", "modernbert-decoder", "mpt", "nemotron_h", "olmo_hybrid", "openai-gpt", "qwen3_5_moe_text",
    "qwen3_5_text", "qwen3_next", "qwen4_exp_text",
})
# fmt: on

#: Types of the tables above whose cache gave other tokens than the whole sequence did.
_UNCACHED = frozenset({"moshi"})

#: Kinds of layers (`config.layer_types`) that consist of attention.
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


def obeys_any_mask(config: Any, columns: float = math.inf) -> bool:
    """Return whether a model's attention obeys an arbitrary mask over all pairs of columns.

    Args:
        config: the model's configuration.
        columns: length of the longest sequence. A sliding window that is at least as long hides nothing.
    """
    kind = getattr(config, "_attn_implementation", None) or "eager"
    if config.model_type not in BRANCHING or kind not in ("grouped", "eager", "sdpa"):
        return False
    text = config.get_text_config()  # a model that reads more than text nests the sizes of its language model
    if not set(getattr(text, "layer_types", None) or ()) <= _ATTENTION:
        return False
    windows = [getattr(text, "attention_chunk_size", None)]
    if getattr(text, "use_sliding_window", True):
        windows.append(getattr(text, "sliding_window", None))
    return all(columns <= (window or math.inf) for window in windows)


def tolerates_padding(config: Any) -> bool:
    """Return whether padding on the left, which the mask of padding hides, does not change a model's logits."""
    return config.model_type in BRANCHING or config.model_type in PADDED


def caches(config: Any) -> bool:
    """Return whether generation with a cache gives the same tokens as without one."""
    return tolerates_padding(config) and config.model_type not in _UNCACHED


def check_causal(source: str, config: Any) -> None:
    """Refuse a model that reads a text in both directions, such as BERT: it would see the answers that it predicts.

    Args:
        source: the source of the model, for the message.
        config: the model's configuration.

    Raises:
        UserError: its configuration says so.
    """
    both = getattr(config, "is_decoder", None) is False or getattr(config, "causal", None) is False
    if both and not tolerates_padding(config):  # the types in the tables are causal, whatever they say
        raise UserError(
            f"model source {source!r}: {config.model_type} reads a text in both directions, so it would see the answer "
            "that it is to predict. Give a causal language model; if this one was trained as such, set is_decoder (for "
            "XLM: causal) to true in its config.json."
        )
