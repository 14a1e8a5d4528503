"""The tensors and the sizes of a causal language model, as llama.cpp's architectures name them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import gguf
import numpy as np
import torch
from torch import Tensor, nn

from fedcollm.errors import UserError

Array = np.ndarray[Any, Any]


class Architecture(NamedTuple):
    """How the models of a type of transformers become those of an architecture of llama.cpp.

    Attributes:
        name: llama.cpp's name of it.
        tensors: what names its tensors in the package gguf.
        interleaved: whether rotary positions turn neighboring columns of q and k, in place of its two halves.
        norm_offset: what is added to the weights of norms, since Gemma's multiply by 1 + w.
        biases: names of the layers that may have a bias; a file with any other one can't be loaded.
        refuses: returns in words what of a configuration llama.cpp's architecture can't do; empty if nothing.
    """

    name: str
    tensors: gguf.MODEL_ARCH
    interleaved: bool = False
    norm_offset: float = 0.0
    biases: frozenset[str] = frozenset()
    refuses: Callable[[Any], str] = lambda config: ""


def _window(config: Any) -> str:
    """Return that a model has sliding windows, if it has; full attention alone is written."""
    used = getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None)
    return "sliding windows" if used else ""


def _gemma(config: Any) -> str:
    """Return what of a Gemma 3 model llama.cpp takes to be otherwise, since its files do not say it."""
    kinds = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(config.num_hidden_layers)]
    if list(config.layer_types) != kinds:
        return "full attention in other layers than every sixth one, as after a cut"
    if config.query_pre_attn_scalar != config.head_dim:
        return "attention scores that are not divided by the root of the width of a head"
    near: Any = config.rope_parameters.get("sliding_attention", {}).get("rope_theta", 10_000)
    return "" if near == 10_000 else "other rotary positions in its sliding windows"


#: Layers of attention, and all layers that llama.cpp's architecture llama lets have a bias.
_ATTENTION = frozenset({"q_proj", "k_proj", "v_proj"})
_ALL = _ATTENTION | {"o_proj", "gate_proj", "up_proj", "down_proj"}

#: Type of transformers (`config.model_type`) to llama.cpp's architecture.
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", gguf.MODEL_ARCH.LLAMA, interleaved=True, biases=_ALL),
    "mistral": Architecture("llama", gguf.MODEL_ARCH.LLAMA, interleaved=True, biases=_ALL, refuses=_window),
    "qwen2": Architecture("qwen2", gguf.MODEL_ARCH.QWEN2, biases=_ATTENTION, refuses=_window),
    "qwen3": Architecture("qwen3", gguf.MODEL_ARCH.QWEN3, refuses=_window),
    "gemma3_text": Architecture("gemma3", gguf.MODEL_ARCH.GEMMA3, norm_offset=1.0, refuses=_gemma),
}


def architecture_of(config: Any) -> Architecture:
    """Return llama.cpp's architecture of a model.

    Raises:
        UserError: it is none of those known here, or has a feature that llama.cpp's lacks.
    """
    known = ARCHITECTURES.get(config.model_type)
    if known is None:
        raise UserError(
            f"--format gguf: a model of the type {config.model_type} can't be written. Types that can: "
            f"{', '.join(ARCHITECTURES)}. Use --format merged or onnx."
        )
    odd = known.refuses(config)
    positions: dict[str, Any] = config.rope_parameters
    each = [positions] if "rope_theta" in positions else list(positions.values())
    kinds = {str(one.get("rope_type", "default")) for one in each} - {"default", "llama3"}
    if kinds and not odd:
        odd = f"rotary positions of the kind {min(kinds)}"
    if odd:
        raise UserError(
            f"--format gguf: this {config.model_type} model has {odd}, which are not written. Use --format merged or "
            "onnx."
        )
    return known


def add_sizes(writer: gguf.GGUFWriter, config: Any, known: Architecture) -> None:
    """Write the sizes of a model, and what its arithmetic depends on."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    writer.add_vocab_size(config.vocab_size)
    positions = config.rope_parameters
    writer.add_rope_freq_base(float(positions.get("full_attention", positions)["rope_theta"]))
    if known.name == "gemma3":
        writer.add_sliding_window(config.sliding_window)


def tensors(network: nn.Module, known: Architecture) -> Iterator[tuple[str, Array]]:
    """Yield the name and the float32 values of each tensor.

    Raises:
        UserError: llama.cpp's architecture has no place for one.
    """
    config = cast(Any, network).config
    names = gguf.get_tensor_name_map(known.tensors, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, tensor in network.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        layer, _, kind = name.rpartition(".")
        if found is None or (kind == "bias" and layer.rsplit(".", 1)[-1] not in known.biases):
            raise UserError(
                f"--format gguf: llama.cpp's architecture {known.name} has no place for the tensor {name}. Use "
                "--format merged or onnx."
            )
        values = tensor.float()
        if known.interleaved and (heads := _heads(name, config)):
            values = interleaved(values, heads)
        if known.norm_offset and "norm" in name:
            values = values + known.norm_offset
        yield found, values.numpy()
    if config.rope_parameters.get("rope_type") == "llama3":
        yield "rope_freqs.weight", _frequency_factors(cast(Any, network), config)


def _heads(name: str, config: Any) -> int:
    """Return the number of heads of a tensor of q or k; 0 for any other."""
    layer = name.rsplit(".", 2)[-2]
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(layer, 0)


def interleaved(values: Tensor, heads: int) -> Tensor:
    """Return the rows of q or k in the order in which llama.cpp turns pairs of them.

    Within each head of d rows, transformers turns row i with row i + d / 2, and llama.cpp row 2 i with row 2 i + 1.

    >>> interleaved(torch.arange(8.0)[:, None], 2).flatten().tolist()
    [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]

    Args:
        values: [heads * d, ...].
        heads: number of heads.
    """
    rows = values.reshape(heads, 2, -1, *values.shape[1:])  # [heads, 2, d / 2, ...]
    return rows.transpose(1, 2).reshape(values.shape)


def _frequency_factors(network: Any, config: Any) -> Array:
    """Return by how much Llama 3 divides each frequency of its rotary positions."""
    scaled: Tensor = network.model.rotary_emb.inv_freq.float().cpu()
    steps = torch.arange(0, 2 * len(scaled), 2).float() / (2 * len(scaled))
    return ((config.rope_parameters["rope_theta"] ** -steps) / scaled).numpy()
