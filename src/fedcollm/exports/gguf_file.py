"""A GGUF file for llama.cpp and Ollama, written with the package gguf alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import gguf
import numpy as np
from gguf.quants import quantize
from torch import nn

from fedcollm.errors import UserError
from fedcollm.exports.gguf_tensors import Array, add_sizes, architecture_of, tensors
from fedcollm.exports.gguf_tokenizer import add_tokenizer
from fedcollm.exports.source import Source
from fedcollm.modalities.text.task import TextTask
from fedcollm.progress import say
from fedcollm.runs.portable import Portable
from fedcollm.storage import write_atomically

_Type, _File = gguf.GGMLQuantizationType, gguf.LlamaFileType

#: Columns in a block of the quantized types.
_BLOCK = 32


class Quantization(NamedTuple):
    """How a file stores matrices; vectors are always in float32.

    Attributes:
        matrices: the type of the matrices of layers.
        embeddings: the type of the embedding and of the head, which suffer more from 4 bits.
        file: llama.cpp's name of the whole.
    """

    matrices: gguf.GGMLQuantizationType
    embeddings: gguf.GGMLQuantizationType
    file: gguf.LlamaFileType


#: Name of a quantization to what it is.
QUANTIZATIONS: Mapping[str, Quantization] = {
    "f32": Quantization(_Type.F32, _Type.F32, _File.ALL_F32),
    "f16": Quantization(_Type.F16, _Type.F16, _File.MOSTLY_F16),
    "bf16": Quantization(_Type.BF16, _Type.BF16, _File.MOSTLY_BF16),
    "q8_0": Quantization(_Type.Q8_0, _Type.Q8_0, _File.MOSTLY_Q8_0),
    "q5_0": Quantization(_Type.Q5_0, _Type.Q8_0, _File.MOSTLY_Q5_0),
    "q4_1": Quantization(_Type.Q4_1, _Type.Q8_0, _File.MOSTLY_Q4_1),
    "q4_0": Quantization(_Type.Q4_0, _Type.Q8_0, _File.MOSTLY_Q4_0),
}


def write_gguf(source: Source, out: Path, quantization: str) -> Path:
    """Write a model with its adapter merged as a GGUF file, and a Modelfile for Ollama beside it; return the file.

    Args:
        source: the trained model.
        out: an empty directory.
        quantization: a key of `QUANTIZATIONS`.

    Raises:
        UserError: the model is no language model, or its architecture or its tokenizer is not known.
    """
    if not source.portable.task.is_text:
        raise UserError(
            f"--format gguf is for language models, and {source.portable.task.name} has none. Use --format merged or "
            "onnx."
        )
    modality, network = source.network()
    assert isinstance(modality, TextTask)
    file = out / f"{_stem(source.portable)}-{quantization}.gguf"
    write_model(network, modality.tokenizer, file, quantization)
    write_atomically(out / "Modelfile", modelfile(file.name, modality))
    return file


def _stem(portable: Portable) -> str:
    """Return a name for a file: letters, digits, dashes and points alone."""
    name = f"{portable.run}-{portable.role}".lower()
    return "".join(sign if sign.isascii() and (sign.isalnum() or sign in "-._") else "-" for sign in name)


def write_model(network: nn.Module, tokenizer: Any, file: Path, quantization: str) -> None:
    """Write a causal language model of transformers and its tokenizer as a GGUF file.

    Args:
        network: the model.
        tokenizer: its tokenizer.
        file: the file.
        quantization: a key of `QUANTIZATIONS`.

    Raises:
        UserError: the architecture or the tokenizer is not known.
    """
    config, wanted = cast(Any, network).config, QUANTIZATIONS[quantization]
    known = architecture_of(config)
    writer = gguf.GGUFWriter(file, known.name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(file.stem)
    writer.add_file_type(wanted.file)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_sizes(writer, config, known)
    add_tokenizer(writer, tokenizer, config.vocab_size)
    wide = 0
    for name, values in tensors(network, known):
        kind = _kind(name, values, wanted)
        wide += kind is not wanted.matrices and values.ndim > 1 and values.shape[-1] % _BLOCK != 0
        writer.add_tensor(name, quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if wide:
        say(f"{wide} matrices whose rows are no multiple of {_BLOCK} columns are written in f16")


def _kind(name: str, values: Array, wanted: Quantization) -> gguf.GGMLQuantizationType:
    """Return the type in which a tensor is stored."""
    if values.ndim == 1:
        return _Type.F32
    kind = wanted.embeddings if name in ("token_embd.weight", "output.weight") else wanted.matrices
    blocks = kind not in (_Type.F32, _Type.F16, _Type.BF16)
    return _Type.F16 if blocks and values.shape[-1] % _BLOCK else kind


def modelfile(name: str, modality: TextTask) -> str:
    """Return the Modelfile with which Ollama runs a GGUF file: `ollama create NAME -f Modelfile`.

    Without a chat template, a prompt is taken as it is, as in training. The likeliest token is taken each time.

    Args:
        name: name of the GGUF file, beside the Modelfile.
        modality: the task, which knows how prompts were asked.
    """
    lines = [f"FROM ./{name}"]
    if not modality.style.chat:
        lines.append('TEMPLATE "{{ .Prompt }}"')  # otherwise Ollama takes the template in the file
    end = modality.encoder.end_token()
    if end is not None:
        lines.append(f'PARAMETER stop "{modality.tokenizer.decode([end])}"')
    lines += [
        "PARAMETER temperature 0",
        f"PARAMETER num_ctx {modality.context_length}",
        f"PARAMETER num_predict {modality.style.max_new_tokens}",
    ]
    return "\n".join(lines) + "\n"
