"""LoRA of which only a core per layer is trained."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import tiny_llama
from tests.parties import add_adapter
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import fedcollm
from fedcollm.config import AdapterConfig
from fedcollm.config.baselines import changed
from fedcollm.errors import UserError
from fedcollm.models.adapters import read_adapter, save_adapter, trainable, write_adapter
from fedcollm.models.core import directions, has_cores
from fedcollm.models.fused.patch import fuse
from fedcollm.runs.runner import evaluate_run


def test_directions_are_those_of_the_largest_singular_values():
    b, a = directions(torch.tensor([[0.0, 3.0], [2.0, 0.0], [0.0, 0.0]]), 1)
    assert torch.allclose(b, torch.tensor([[1.0], [0.0], [0.0]]))
    assert torch.allclose(a, torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_directions_are_orthonormal_and_rebuild_the_weight(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    b, a = directions(weight, min(shape))
    assert torch.allclose(b.T @ b, torch.eye(min(shape)), atol=1e-5)
    assert torch.allclose(a @ a.T, torch.eye(min(shape)), atol=1e-5)
    assert torch.allclose(b @ (b.T @ weight @ a.T) @ a, weight, atol=1e-5)


def test_equal_singular_values_still_give_orthonormal_directions():
    b, a = directions(torch.eye(4), 2)
    assert torch.allclose(b.T @ b, torch.eye(2), atol=1e-6)
    assert torch.allclose(b.T, a, atol=1e-6)


def test_only_cores_travel_and_start_from_nothing(llama):
    model = add_adapter(llama, core=True, rank=3)
    assert {tuple(tensor.shape) for tensor in read_adapter(model).values()} == {(3, 3)}
    assert all(not tensor.any() for tensor in read_adapter(model).values())
    assert len(trainable(model)) == 2 * 7  # layers, linear layers of each


@pytest.mark.parametrize("fused", [False, True])
def test_layer_computes_b_r_a_and_learns_r(fused):
    base = tiny_llama()
    model = add_adapter(base, core=True, rank=2, alpha=4)
    if fused:
        fuse(model)
    core = {name: torch.full((2, 2), 0.1) for name in read_adapter(model)}
    write_adapter(model, core)
    tokens = torch.tensor([[2, 3, 4, 5]])
    model(input_ids=tokens).logits.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in trainable(model).items()}

    plain = tiny_llama()  # the same change, added to the weights themselves
    wanted: dict[str, torch.Tensor] = {}
    for name, module in list(plain.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            b, a = directions(module.weight, 2)
            wanted[name] = torch.full((2, 2), 0.1, requires_grad=True)
            change = 4 / 2 * len(b) / (3**0.5 * 2) * b @ wanted[name] @ a
            weight = module.weight.detach()
            del module.weight
            module.weight = weight + change
    logits = plain(input_ids=tokens).logits
    assert torch.allclose(model(input_ids=tokens).logits, logits, atol=1e-4)
    logits.square().sum().backward()
    for name, gradient in gradients.items():
        layer = name.removeprefix("base_model.model.").partition(".lora_A")[0]
        assert torch.allclose(gradient, wanted[layer].grad, rtol=1e-3, atol=1e-4), name


def test_saved_adapter_is_plain_lora_for_peft_alone(tmp_path):
    model = add_adapter(tiny_llama(), core=True, rank=2)
    adapter = {name: torch.randn(2, 2, generator=torch.Generator().manual_seed(1)) for name in read_adapter(model)}
    save_adapter(model, adapter, tmp_path / "slm")
    assert {name.rsplit(".", 2)[-2] for name in load_file(tmp_path / "slm" / "adapter_model.safetensors")} == {
        "lora_A",
        "lora_B",
    }
    again = peft.PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "slm"))
    tokens = torch.tensor([[2, 3, 4, 5]])
    assert torch.allclose(again(input_ids=tokens).logits, model(input_ids=tokens).logits, atol=1e-5)


def test_transposed_weights_of_gpt2():
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    model = add_adapter(base, core=True, rank=2, targets=["c_attn"])
    layer = model.base_model.model.transformer.h[0].attn.c_attn
    assert layer.lora_A["default"].weight.shape == (2, 8)
    assert layer.lora_B["default"].weight.shape == (24, 2)
    assert has_cores(model)


def test_what_has_no_core_is_refused(llama):
    with pytest.raises(ValueError, match="freeze_a"):
        AdapterConfig(core=True, freeze_a=True)
    with pytest.raises(UserError, match=r"adapter\.core.*plain LoRA"):
        add_adapter(llama, core=True, kind="dora")
    with pytest.raises(UserError, match="rank 17 exceeds"):
        add_adapter(llama, core=True, rank=17)


@pytest.mark.parametrize("secure", [False, True])
def test_run_with_cores_sends_them_alone_and_leaves_what_peft_and_predict_read(tiny_config, tmp_path, secure):
    changes = {
        "slm.adapter.core": True,
        "slm.adapter.rank": 4,
        "task.clients": 3,
        "task.private_size": 30,
        "federation.rounds": 1,
        "federation.secure_aggregation.enabled": secure,
    }
    config = changed(tiny_config, changes)
    result = fedcollm.run(config, tmp_path / "run")
    if not secure:
        assert result.records[-1].bytes_up == 2 * 7 * 4 * 4 * 4  # layers, linear layers, 4 x 4 float32
    assert result.records[-1].bytes_down >= 896
    score = evaluate_run(tmp_path / "run", "slm")
    assert score.value == result.records[-1].scores["slm"]
    named = json.loads((result.adapters["slm"] / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(named["base_model_name_or_path"])
    assert peft.PeftModel.from_pretrained(base, str(result.adapters["slm"])).peft_config["default"].r == 4
    model = result.load("slm")
    assert not has_cores(model.model)
