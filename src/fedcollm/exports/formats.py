"""The formats of an export: how each is written, loaded again for the comparison, and quantized."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fedcollm.exports import adapter, merged
from fedcollm.exports.source import Source
from fedcollm.modalities.base import Modality

#: Largest loss of the main metric that is allowed without `--margin`, where nothing or 8 bits are rounded.
MARGIN = 0.02


@dataclass(frozen=True)
class Format:
    """A format of an export.

    Attributes:
        words: what an export is, for its card.
        library: the library that loads it, for its card.
        write: writes the source into an empty directory, given the quantization and test examples; returns the main
            file.
        load: returns the modality and the model of the main file, for the comparison.
        quantizations: name of each quantization to the margin that holds for it by default; the first one is the
            default. No margin means that any loss is let through, and said.
        runner: what measures memory and speed of a language model, a key of `footprint.RUNNERS`.
        lone: whether the main file is the whole model; otherwise its directory is.
    """

    words: str
    library: str
    write: Callable[[Source, Path, str, Sequence[Any]], Path]
    load: Callable[[Source, Path], tuple[Modality, nn.Module]]
    quantizations: Mapping[str, float | None]
    runner: str = "torch"
    lone: bool = False


def _adapter(source: Source, out: Path, quantization: str, examples: Sequence[Any], with_base: bool = False) -> Path:
    return adapter.write_adapter(source, out, with_base)


def _merged(source: Source, out: Path, quantization: str, examples: Sequence[Any]) -> Path:
    return merged.write_merged(source, out, quantization)


def _gguf(source: Source, out: Path, quantization: str, examples: Sequence[Any]) -> Path:
    from fedcollm.exports.gguf_file import write_gguf

    return write_gguf(source, out, quantization)


def _load_gguf(source: Source, file: Path) -> tuple[Modality, nn.Module]:
    from fedcollm.exports.llama_cpp import load_gguf

    return load_gguf(source, file)


def _onnx(source: Source, out: Path, quantization: str, examples: Sequence[Any]) -> Path:
    from fedcollm.exports.onnx_file import write_onnx

    return write_onnx(source, out, quantization, examples)


def _load_onnx(source: Source, file: Path) -> tuple[Modality, nn.Module]:
    from fedcollm.exports.onnx_file import load_onnx

    return load_onnx(source, file)


_ADAPTER = Format("an adapter in PEFT's format", "peft", _adapter, adapter.load_adapter, {"none": MARGIN})

#: Name of a format to what it is.
FORMATS: Mapping[str, Format] = {
    "adapter": _ADAPTER,
    "merged": Format(
        "a whole model, into which the adapter was merged",
        "transformers",
        _merged,
        merged.load_merged,
        {"base": MARGIN, "float32": MARGIN, "bfloat16": MARGIN, "float16": MARGIN},
    ),
    "gguf": Format(
        "a whole model in the format GGUF, for llama.cpp and Ollama",
        "gguf",
        _gguf,
        _load_gguf,
        {"f16": MARGIN, "bf16": MARGIN, "f32": MARGIN, "q8_0": MARGIN, "q5_0": None, "q4_1": None, "q4_0": None},
        "llama_cpp",
        lone=True,
    ),
    "onnx": Format(
        "a whole model in the format ONNX, for onnxruntime",
        "onnx",
        _onnx,
        _load_onnx,
        {"fp32": MARGIN, "int8": MARGIN},
        "onnxruntime",
        lone=True,
    ),
}


def with_base(one: Format) -> Format:
    """Return the format of an adapter whose base goes along."""
    assert one is _ADAPTER
    return Format(
        "an adapter in PEFT's format, with its base",
        one.library,
        partial(_adapter, with_base=True),
        one.load,
        one.quantizations,
    )
