"""GGUF files hold the merged model, quantized as asked, with a tokenizer that llama.cpp reads alike."""

import importlib.util
import json
import math
import re
from dataclasses import replace
from importlib import resources

import numpy as np
import psutil
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tests.exports.conftest import byte_pairs, sentence_pieces
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import fedcollm
from fedcollm import ExportOptions
from fedcollm.config.loading import load_config, preset_names
from fedcollm.errors import UserError
from fedcollm.exports.check import Check, Measured
from fedcollm.exports.footprint import Footprint, measure
from fedcollm.exports.formats import FORMATS
from fedcollm.exports.gguf_file import write_model
from fedcollm.exports.gguf_tensors import interleaved
from fedcollm.exports.gguf_tokenizer import vocabulary_of
from fedcollm.exports.runtime import TokenRuntime
from fedcollm.models.pruning import prune_layers
from fedcollm.training.shrinking import LAYER_CHOICES

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python (extra export) is not installed"
)
SIZES = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
SCALED = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama3": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, rope_parameters=SCALED, attention_bias=True, mlp_bias=True)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=False)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None, head_dim=8)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES | {"num_attention_heads": 2}, sliding_window=32)),
}


def made(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():  # biases and norms begin with 0 and 1, which would hide a wrong place
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def written(tmp_path, model, tokenizer, quantization="f32"):
    file = tmp_path / f"{quantization}.gguf"
    write_model(model, tokenizer, file, quantization)
    return file


def values(file):
    """Metadata, and tensor name to its type and its values."""
    reader = GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {t.name: (t.tensor_type.name, dequantize(t.data, t.tensor_type)) for t in reader.tensors}


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "gemma3"])
def test_transformers_reads_the_same_model_back(tmp_path, name, pairs):
    model = made(name)
    file = written(tmp_path, model, pairs)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    tokens = torch.arange(40)[None] * 7 % 320
    with torch.no_grad():
        assert torch.allclose(again(tokens).logits, model(tokens).logits, atol=1e-4)


@needs_llama_cpp
@pytest.mark.parametrize("name", list(MODELS))
def test_llama_cpp_computes_the_same_logits(tmp_path, name, pairs):
    from fedcollm.exports.llama_cpp import LlamaCpp

    model = made(name)
    runtime = LlamaCpp(written(tmp_path, model, pairs), 64)
    for tokens in (torch.arange(40)[None] * 7 % 320, torch.arange(20)[None] * 7 % 320, torch.arange(30)[None] % 320):
        with torch.no_grad():
            assert torch.allclose(runtime(tokens).logits, model(tokens).logits, atol=2e-2)
    text = "the red cat 12 is  a bird's: <|im_end|>"
    assert runtime.tokens(text) == pairs(text).input_ids


@needs_llama_cpp
@pytest.mark.parametrize("gemma", [False, True])
def test_llama_cpp_splits_texts_as_sentencepiece(tmp_path, gemma):
    from fedcollm.exports.llama_cpp import LlamaCpp

    torch.manual_seed(0)
    tokenizer = sentence_pieces(gemma)
    model = LlamaForCausalLM(LlamaConfig(**SIZES | {"vocab_size": len(tokenizer)}))
    runtime = LlamaCpp(written(tmp_path, model, tokenizer, "f16"), 64)
    for text in ("the red cat 12", "a  bird's\n\tcafé 日本 😀", "if x: y = 3  # é", "</s>"):
        assert runtime.tokens(text) == tokenizer(text).input_ids


@needs_llama_cpp
def test_prompts_that_llama_cpp_splits_otherwise_are_counted(tmp_path, pairs):
    from fedcollm.exports.llama_cpp import LlamaCpp, split_otherwise

    model = made("llama")
    runtime = LlamaCpp(written(tmp_path, model, pairs), 64)
    assert split_otherwise(runtime, pairs, ["the red cat 12", "a bird"]) == 0
    lower = byte_pairs()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()  # which no GGUF file can say
    assert split_otherwise(runtime, lower, ["The RED cat", "a bird"]) == 1
    assert split_otherwise(model, pairs, ["red 12"]) is None


def test_export_fails_by_its_score_its_numbers_or_its_tokens():
    one = Check("acc", 100, Measured(0.5, 1, 1), Measured(0.49, 1, 1), 1.0, "logits", 0.1, 64, 0.02, split_otherwise=2)
    assert one.passed
    assert one.failures == []
    for change, words in (
        ({"export": Measured(0.47, 1, 1)}, r"lost 0\.0300 of acc, more than --margin 0\.02"),
        ({"largest_difference": math.nan}, "logits are not all finite"),
        ({"split_otherwise": 3}, "prompts of 3 of 100"),
    ):
        (failure,) = replace(one, **change).failures
        assert re.search(words, failure)
    assert replace(one, export=Measured(0.1, 1, 1), margin=None).passed


def test_frequencies_of_llama_3_are_divided(tmp_path, pairs):
    _, tensors = values(written(tmp_path, made("llama3"), pairs))
    factors = tensors["rope_freqs.weight"][1]
    assert factors.shape == (4,)  # one per pair of a head's 8 columns
    assert factors[0] == pytest.approx(1)  # the fastest keeps its frequency
    assert factors[-1] == pytest.approx(8)  # the slowest turns 8 times more slowly


@pytest.mark.parametrize(
    ("name", "matrices", "embeddings", "off"),
    [
        ("f16", "F16", "F16", 1e-3),
        ("q8_0", "Q8_0", "Q8_0", 0.01),
        ("q5_0", "Q5_0", "Q8_0", 0.07),
        ("q4_0", "Q4_0", "Q8_0", 0.14),
    ],
)
def test_matrices_are_quantized_and_vectors_are_not(tmp_path, pairs, name, matrices, embeddings, off):
    model = made("llama")
    _, tensors = values(written(tmp_path, model, pairs, name))
    assert tensors["blk.0.ffn_up.weight"][0] == matrices
    assert tensors["token_embd.weight"][0] == embeddings
    assert tensors["blk.1.attn_norm.weight"][0] == "F32"
    assert "output.weight" not in tensors  # the head is the embedding
    exact = model.model.layers[0].mlp.up_proj.weight.detach().numpy()
    gap = np.abs(tensors["blk.0.ffn_up.weight"][1] - exact).max()
    assert 0 < gap < off


def test_rows_that_are_no_multiple_of_32_columns_stay_in_16_bits(tmp_path, pairs):
    sizes = SIZES | {"hidden_size": 16, "num_attention_heads": 2}
    _, tensors = values(written(tmp_path, LlamaForCausalLM(LlamaConfig(**sizes)), pairs, "q4_0"))
    assert [tensors[f"blk.0.{name}.weight"][0] for name in ("ffn_up", "ffn_down")] == ["F16", "Q4_0"]


def test_rows_of_q_are_put_as_neighbors():
    rows = torch.tensor([0.0, 1, 2, 3, 10, 11, 12, 13])[:, None]  # two heads of four rows
    assert interleaved(rows, 2).flatten().tolist() == [0, 2, 1, 3, 10, 12, 11, 13]


def test_sizes_and_special_tokens_are_written(tmp_path, pairs):
    fields, _ = values(written(tmp_path, made("llama"), pairs))
    wanted = {
        "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 64,
        "llama.embedding_length": 32, "llama.feed_forward_length": 64, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2, "llama.rope.dimension_count": 8, "llama.vocab_size": 320,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip
    assert {name: fields[name] for name in wanted} == wanted
    assert fields["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]  # control tokens, then a normal one
    assert fields["tokenizer.ggml.tokens"][:2] == ["<|endoftext|>", "<|im_start|>"]


QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([pre_tokenizers.ByteLevel(add_prefix_space=False)], "gpt-2"),
        ([pre_tokenizers.Split(Regex(QWEN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)], "qwen2"),
        (
            [
                pre_tokenizers.Split(Regex(QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")), "isolated"),
                pre_tokenizers.ByteLevel(False, use_regex=False),
            ],
            "llama-bpe",
        ),
    ],
)
def test_what_splits_a_text_is_named(steps, name):
    tokenizer = byte_pairs(steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps))
    found = vocabulary_of(tokenizer, 325)
    assert (found.pre, found.tokens[-1], found.kinds[-1]) == (name, "[PAD324]", 5)  # more columns than tokens


def test_unknown_architectures_and_tokenizers_are_refused(tmp_path, pairs, tokenizer):
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2, n_positions=64))
    with pytest.raises(UserError, match=r"gpt2.*llama, mistral, qwen2"):
        written(tmp_path, gpt2, pairs)
    with pytest.raises(UserError, match="type WordLevel"):
        written(tmp_path, made("llama"), tokenizer)
    with pytest.raises(UserError, match="way of its own"):
        vocabulary_of(byte_pairs(pre_tokenizers.ByteLevel(add_prefix_space=True)), 320)
    windows = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=0)
    with pytest.raises(UserError, match="sliding windows"):
        written(tmp_path, Qwen2ForCausalLM(windows), pairs)
    biased = Qwen3ForCausalLM(Qwen3Config(**SIZES, attention_bias=True))
    with pytest.raises(UserError, match=r"no place for .*q_proj\.bias"):
        written(tmp_path, biased, pairs)
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 32}
    with pytest.raises(UserError, match="yarn"):
        written(tmp_path, LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=yarn)), pairs)


@pytest.mark.parametrize("name", ["f16", "q8_0", "q4_0"])
def test_run_is_exported_and_scores_alike(finished, tmp_path, name):
    options = ExportOptions(format="gguf", quantization=name, margin=0.1, footprint=False)
    done = fedcollm.export(finished, tmp_path / "out", options)
    assert done.check is not None
    assert done.file.name == f"tiny-slm-{name}.gguf"
    assert done.check.passed
    assert FORMATS["gguf"].quantizations[name] == {"f16": 0.02, "q8_0": 0.02, "q4_0": None}[name]
    assert 0 < done.check.largest_difference < {"f16": 0.05, "q8_0": 0.2, "q4_0": 4}[name]
    assert done.check.split_otherwise == (0 if importlib.util.find_spec("llama_cpp") else None)
    assert done.check.export.bytes == done.file.stat().st_size
    fields, tensors = values(done.file)
    assert fields["llama.block_count"] == 2  # of three layers, the SLM has two
    assert {part.split(".")[1] for part in tensors if part.startswith("blk")} == {"0", "1"}
    lines = (done.directory / "Modelfile").read_text().splitlines()
    assert lines[:2] == [f"FROM ./tiny-slm-{name}.gguf", 'TEMPLATE "{{ .Prompt }}"']
    assert json.loads((done.directory / "check.json").read_text())["examples"] == 40
    assert AutoTokenizer.from_pretrained(done.directory, gguf_file=done.file.name)("the cat").input_ids


@needs_llama_cpp
def test_memory_and_speed_are_measured_in_a_process_of_its_own(tmp_path, pairs):
    file = written(tmp_path, made("llama"), pairs)
    found = measure("llama_cpp", file, [1, 5, 9], 7)
    assert found.bytes == 7
    assert 10e6 < found.peak_memory_bytes < psutil.Process().memory_info().rss  # not that of this process
    assert found.tokens_per_second > 0
    assert measure("llama_cpp", tmp_path / "nothing.gguf", [1], 7) == Footprint(7)  # it failed, so nothing is known


class Counting(TokenRuntime):
    """A model whose logits are one row per token: [token, position]."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def extend(self, known, tokens):
        self.asked.append((known, tuple(tokens)))
        return torch.tensor([[float(token), known + i] for i, token in enumerate(tokens)])


def test_runtime_reads_only_what_it_did_not_read_before():
    model = Counting()

    def rows(*tokens, keep=0):
        return model(torch.tensor([tokens]), logits_to_keep=keep).logits[0].tolist()

    assert rows(5, 6, 7, 8, keep=2) == [[7, 2], [8, 3]]
    assert rows(5, 6, 7, 9, keep=2) == [[7, 2], [9, 3]]  # the row of 7 was kept
    assert rows(5, 6, 7, keep=1) == [[7, 2]]  # it was kept too, so nothing is read
    assert rows(5, 6, keep=1) == [[6, 1]]  # it was not
    assert rows(5, 6, 7, keep=1) == [[7, 2]]
    assert rows(5, 6, 7, 8, keep=4) == [[5, 0], [6, 1], [7, 2], [8, 3]]  # the rows of 5 and 6 were not kept
    assert rows(4, keep=1) == [[4, 0]]
    assert model.asked == [(0, (5, 6, 7, 8)), (3, (9,)), (1, (6,)), (2, (7,)), (0, (5, 6, 7, 8)), (0, (4,))]


@pytest.mark.parametrize("name", [name for name in preset_names() if name.endswith("_shrunk")])
def test_slm_of_a_shrunk_preset_can_be_written(tmp_path, pairs, name):
    section = load_config(name).slm
    known = json.loads((resources.files("fedcollm.config") / "presets" / "architectures.json").read_text())
    small = {key: value for key, value in SIZES.items() if key != "num_hidden_layers"}
    shape = AutoConfig.for_model(**known[section.source] | small)
    model = AutoModelForCausalLM.from_config(shape)
    layers = section.layers
    if isinstance(layers, int):
        layers = LAYER_CHOICES[section.layer_choice](None, model, [], layers)
    assert (layers[0], layers[-1]) == (0, shape.num_hidden_layers - 1)
    fields, _ = values(written(tmp_path, prune_layers(model, layers), pairs, "q8_0"))
    assert fields[f"{fields['general.architecture']}.block_count"] == len(layers)
