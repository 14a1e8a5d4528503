"""ONNX files compute what the merged model does: with a cache for language models, and for images and recordings."""

import importlib.util

import pytest
import torch
from torch import nn
from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

import fedcollm
from fedcollm import ExportOptions
from fedcollm.config.baselines import changed
from fedcollm.config.loading import load_config
from fedcollm.errors import UserError
from fedcollm.exports.onnx_blocks import write_in_blocks
from fedcollm.exports.onnx_file import OnnxLanguageModel, OnnxNetwork, require_packages, write_graph
from fedcollm.exports.onnx_graph import Graph, causal_graph

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript or onnxruntime (extra export) is not installed",
)


class Doubled(nn.Module):
    """Twice its input times a matrix."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Linear(3, 2, bias=False)
        self.matrix.weight.data = torch.tensor([[1.0, 0, 2], [0, 1, 0]])

    def forward(self, *values):
        return (2 * self.matrix(values[0]),)


@needs_onnx
def test_small_graph_takes_any_batch_and_can_be_write_in_blocks(tmp_path):
    graph = Graph(Doubled(), {"pixel_values": torch.zeros(2, 3)}, {"pixel_values": (0,)}, ("logits",))
    write_graph(graph, tmp_path / "a.onnx")
    pixels = torch.tensor([[1.0, 2, 3], [0, 1, 0], [4, 0, 0], [0, 0, 1], [1, 1, 1]])
    wanted = [[14.0, 4], [0, 2], [8, 0], [4, 0], [6, 2]]
    assert OnnxNetwork(tmp_path / "a.onnx")(pixel_values=pixels).logits.tolist() == wanted
    write_in_blocks(tmp_path / "a.onnx", tmp_path / "b.onnx")
    gaps = OnnxNetwork(tmp_path / "b.onnx")(pixel_values=pixels).logits - torch.tensor(wanted)
    assert 0 < gaps.abs().max() < 0.2


@needs_onnx
@pytest.mark.slow
def test_language_model_keeps_what_it_read(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.2)).eval()
    write_graph(causal_graph(model), tmp_path / "a.onnx")
    runtime = OnnxLanguageModel(tmp_path / "a.onnx")
    for tokens in ([[1, 5, 9, 13, 17]], [[1, 5, 9, 2]], [[1]], [[1, 5, 9, 2, 6, 10]]):
        with torch.no_grad():
            wanted = model(torch.tensor(tokens)).logits
        assert torch.allclose(runtime(torch.tensor(tokens)).logits, wanted, atol=1e-4)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(("name", "quantization"), [("spoken_words", "int8"), ("shapes", "fp32")])
def test_recordings_and_boxes_go_through_the_same_door(tmp_path, name, quantization):
    sizes = {"private_size": 10, "public_size": 40, "test_size": 12, "clients": 2}
    config = load_config(name, name="x", federation={"rounds": 1}, task=sizes)
    source = {"llm.source": config.slm.source, "llm.pretrain_epochs": 0, "slm.pretrain_epochs": 1}
    fedcollm.run(changed(config, source), tmp_path / "run")
    options = ExportOptions(format="onnx", quantization=quantization, margin=0.5, footprint=False)
    done = fedcollm.export(tmp_path / "run", tmp_path / "out", options)
    assert done.check is not None
    assert done.check.passed
    assert done.check.largest_difference < (0.05 if quantization == "fp32" else 2)
    assert done.check.difference_of == "logits"


def test_what_can_not_be_written_is_refused(finished, tmp_path, monkeypatch):
    bloom = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2))
    with pytest.raises(UserError, match="type bloom"):
        causal_graph(bloom)
    monkeypatch.setattr("fedcollm.exports.onnx_file.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnx, onnxscript, onnxruntime.*fedcollm\[export\]"):
        require_packages()
    with pytest.raises(UserError, match="pip install"):
        fedcollm.export(finished, tmp_path / "out", ExportOptions(format="onnx", check=False))
    assert not (tmp_path / "out").exists()
