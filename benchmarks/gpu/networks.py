"""The networks that are measured: SmolLM2-135M with its own weights, the shape of Qwen2.5-0.5B with random ones.

Random networks are written once to the cache of converted models, with a tokenizer, so that every side loads them as it
loads any other. Those of `--tiny` have a tokenizer of single bytes and need no weights from anywhere.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast, Qwen2Config

from benchmarks.gpu.device import device
from fedcollm.models.cache import cache_directory
from fedcollm.models.pretrained import load_tokenizer

SMOLLM2 = "smollm2-135m"

TITLES = {
    "smollm2-30": "SmolLM2-135M, 30 layers",
    "smollm2-10": "SmolLM2-135M, 10 layers",
    "qwen-0.5b": "Qwen2.5-0.5B's shape, random weights",
    "tiny-3": "tiny, 3 layers",
    "tiny-2": "tiny, 2 layers",
}

_SHARED_VALUES: dict[str, Any] = {"rms_norm_eps": 1e-6, "tie_word_embeddings": True, "num_key_value_heads": 2}


def section(name: str) -> dict[str, Any]:
    """Return `llm` or `slm` of a configuration for a network's name, made first where its weights are random."""
    if name in ("smollm2-30", "smollm2-10"):
        return {"source": SMOLLM2} | ({"layers": 10} if name == "smollm2-10" else {})
    return {"source": str(_random_directory(name))}


def with_models(case: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """Return a case with the `models` that benchmarks.speed reads, from the names `llm` and `slm` of networks.

    Args:
        case: with `llm` and `slm`.
        sections: further keys of both models' sections, such as `attention`.
    """
    models = {role: section(case[role]) | sections for role in ("llm", "slm")}
    return case | {"models": models, "dtype": "bfloat16", "one_process": True}


def _random_directory(name: str) -> Path:
    """Return the cached directory of a random network, float32 for tiny ones and bfloat16 for others."""
    target = cache_directory() / f"benchmark-{name}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = _byte_tokenizer() if name.startswith("tiny") else load_tokenizer(SMOLLM2)
    torch.manual_seed(0)
    with torch.device(device()):
        network = AutoModelForCausalLM.from_config(_shape(name), dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        network.cpu().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        Path(temporary).rename(target)
        Path(temporary).mkdir()  # for its own removal
    return target


def _shape(name: str) -> PreTrainedConfig:
    if name == "qwen-0.5b":
        return Qwen2Config(
            vocab_size=151936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            max_position_embeddings=32768,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            **_SHARED_VALUES,
        )
    return LlamaConfig(
        vocab_size=258,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=int(name[-1]),
        num_attention_heads=4,
        max_position_embeddings=8192,
        **_SHARED_VALUES,
    )


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are bytes, with an end of text and padding."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: i for i, word in enumerate(["<end>", "<pad>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")
