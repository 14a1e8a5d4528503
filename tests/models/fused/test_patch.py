"""Fused layers against PEFT's own, and how many products a step makes: counts don't depend on the machine."""

import copy
import functools

import peft
import pytest
import torch
from tests.conftest import tiny_llama
from tests.modalities.vision.tiny_detectors import TINY
from tests.parties import add_adapter
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from fedcollm.modalities.text.task import TextBatch, TextExample, TextTask
from fedcollm.models.adapters import read_adapter
from fedcollm.models.fused.attention import GROUPED
from fedcollm.models.fused.lora import LoraStack
from fedcollm.models.fused.patch import fuse, unfused


def pair(
    dtype: torch.dtype = torch.float32, attention: str = "sdpa", **adapter
) -> tuple[peft.PeftModel, peft.PeftModel]:
    """The same model twice, the second one fused; B is not zero."""
    models = []
    for _ in range(2):
        network = tiny_llama().to(dtype)
        network.set_attn_implementation(attention)
        model = add_adapter(network, seed=3, rank=4, **adapter)
        torch.manual_seed(5)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
        models.append(model)
    fuse(models[1])
    return models[0], models[1]


def stacks(model: nn.Module) -> list[LoraStack]:
    found = {}
    for module in model.modules():
        owner = getattr(getattr(vars(module).get("forward"), "func", None), "__self__", None)
        if isinstance(owner, LoraStack):
            found[id(owner)] = owner
    return list(found.values())


TINY_WHISPER = WhisperConfig(
    vocab_size=8, num_mel_bins=8, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, max_source_positions=10, max_target_positions=8,
    pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=1,
)  # fmt: skip

TOKENS = torch.tensor([[2, 3, 4, 5], [6, 7, 8, 9]])


def loss(model: nn.Module) -> torch.Tensor:
    return model(TOKENS, labels=TOKENS).loss


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss(model).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def test_one_layer_by_hand():
    # W = [1 2], A = [1 1], B = [3], s = 2 / 1: y = x Wᵀ + 2 (x Aᵀ) 3
    layer = nn.Linear(2, 1, bias=True)
    layer.weight.data, layer.bias.data = torch.tensor([[1.0, 2.0]]), torch.tensor([10.0])
    model = peft.get_peft_model(nn.Sequential(layer), peft.LoraConfig(r=1, lora_alpha=2, target_modules=["0"]))
    tuned = model.base_model.model[0]
    tuned.lora_A["default"].weight.data, tuned.lora_B["default"].weight.data = torch.ones(1, 2), torch.tensor([[3.0]])
    fuse(model)
    x = torch.tensor([[1.0, 4.0]], requires_grad=True)
    y = model(x)
    assert y.tolist() == [[9.0 + 10.0 + 30.0]]
    y.backward()
    assert x.grad.tolist() == [[1.0 + 6.0, 2.0 + 6.0]]
    assert tuned.lora_A["default"].weight.grad.tolist() == [[6.0, 24.0]]  # s B x
    assert tuned.lora_B["default"].weight.grad.tolist() == [[10.0]]  # s A x


def test_siblings_are_stacked_and_their_weights_stay_where_the_matrix_is():
    _, fused = pair()
    made = stacks(fused)
    assert sorted(len(stack.layers) for stack in made) == [1, 1, 1, 1, 2, 2, 3, 3]
    for stack in made:
        first = stack.layers[0].base_layer.weight
        assert first.untyped_storage().data_ptr() == stack.matrix.untyped_storage().data_ptr()


@pytest.mark.parametrize("targets", ["auto", ["q_proj", "v_proj"], ["o_proj", "up_proj"]])
def test_loss_and_gradients_are_those_of_peft(targets):
    plain, fused = pair(targets=targets)
    torch.testing.assert_close(loss(fused), loss(plain))
    expected, got = gradients(plain), gradients(fused)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert value.abs().max() > 0
        torch.testing.assert_close(got[name], value, atol=1e-6, rtol=1e-4)


def test_bfloat16_base_keeps_float32_adapters_and_their_gradients_close():
    plain, fused = pair(torch.bfloat16)
    assert {p.dtype for p in read_adapter(fused).values()} == {torch.float32}
    exact, rounded, ours = gradients(pair()[0]), gradients(plain), gradients(fused)
    assert {gradient.dtype for gradient in ours.values()} == {torch.float32}
    errors = [sum((g[name] - exact[name]).square().sum().item() for name in exact) ** 0.5 for g in (rounded, ours)]
    assert 0 < errors[1] < 1.5 * errors[0]


def test_biases_of_some_siblings():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.q_proj, self.k_proj, self.v_proj = nn.Linear(3, 4), nn.Linear(3, 2, bias=False), nn.Linear(3, 2)

        def forward(self, x):
            return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False)
    plain = peft.get_peft_model(Attention(), config)
    fused = copy.deepcopy(plain)
    fuse(fused)
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(fused(x), plain(x))
    assert len(stacks(fused)) == 1


def test_new_values_of_an_adapter_count_at_once():
    plain, fused = pair()
    for model in (plain, fused):
        loss(model)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.mul_(0.5)
    torch.testing.assert_close(loss(fused), loss(plain))


def test_disabled_adapter_and_unfused_model_compute_as_peft_does():
    plain, fused = pair()
    with plain.disable_adapter(), fused.disable_adapter():
        torch.testing.assert_close(loss(fused), loss(plain))
    calls = []
    hook = (
        fused.base_model.model.model.layers[0]
        .mlp.gate_proj.lora_A["default"]
        .register_forward_hook(lambda *_: calls.append(1))
    )
    loss(fused)
    assert calls == []
    with unfused(fused):
        torch.testing.assert_close(loss(fused), loss(plain))
    assert calls == [1]
    hook.remove()
    torch.testing.assert_close(loss(fused), loss(plain))


def test_frozen_a_has_no_gradient_and_b_that_of_peft():
    plain, fused = pair(freeze_a=True)
    assert stacks(fused) != []
    expected, found = gradients(plain), gradients(fused)
    assert len(expected) == 14
    assert all("lora_B" in name for name in expected)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert all(p.grad is None for name, p in fused.named_parameters() if "lora_A" in name)


@pytest.mark.parametrize("adapter", [{"dropout": 0.1}, {"kind": "dora"}])
def test_adapters_that_do_more_are_left_alone(adapter):
    plain, fused = pair(**adapter)
    assert stacks(fused) == []
    torch.testing.assert_close(loss(fused), loss(plain))


def test_model_that_changed_its_dtype_is_left_to_peft():
    plain, fused = pair()
    torch.testing.assert_close(loss(fused.bfloat16()), loss(plain.bfloat16()), atol=1e-2, rtol=1e-2)


def batch(task: TextTask) -> TextBatch:
    """Answers of one and two tokens after prompts of four lengths."""
    prompts = {"the cat is :": "red", "a :": "good dog", "the red bird is a good animal :": "bad", "is :": "a cat"}
    return task.collate([TextExample(p, p, (answer,), 0, ("",)) for p, answer in prompts.items()])


FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "mistral": (MistralForCausalLM, MistralConfig),
    "mistral, windowed": (MistralForCausalLM, functools.partial(MistralConfig, sliding_window=3)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),  # with biases
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),  # with norms of queries and keys
}


@pytest.mark.parametrize("attention", [GROUPED, "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_and_gradients_are_those_of_peft_on_a_padded_batch(family, attention, tokenizer):
    task, results = TextTask("toy", tokenizer, 16, 32), []
    network, shape = FAMILIES[family]
    options = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "head_dim": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    mistral = {} if family.endswith("windowed") or "mistral" not in family else {"sliding_window": None}
    torch.manual_seed(0)
    base = network(shape(**options, **heads, **mistral, pad_token_id=0)).eval()
    for parameter in base.parameters():
        if parameter.ndim == 1:  # norms and biases that are not trivial
            nn.init.uniform_(parameter, 0.5, 1.5)
    for fused in (False, True):
        model = add_adapter(copy.deepcopy(base), seed=3, rank=4)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.uniform_(parameter, -0.3, 0.3, generator=torch.Generator().manual_seed(len(name)))
        if fused:
            model.base_model.model.set_attn_implementation(attention)
            fuse(model)
        logits = task.logits(model, batch(task))
        logits.mul(torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
        results.append((logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    (expected, wanted), (got, found) = results
    assert expected.shape == (6, 16)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    for name, value in wanted.items():
        assert value.abs().max() > 0
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3)


def test_which_models_read_packed_tokens():
    assert pair(attention=GROUPED)[1].reads_packed(4)
    assert not hasattr(
        pair(attention=GROUPED, targets=["q_proj", "v_proj"])[1], "reads_packed"
    )  # not all of a layer is in stacks


class Products(TorchDispatchMode):
    """Counts matrix products and the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.count, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        self.count += name in ("mm", "addmm", "addmm_", "linear", "_linear_pointwise")
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor) and not func.is_view and not func._schema.is_mutable:
                self.largest = max(self.largest, tensor.numel())
        return result


def products(model: nn.Module) -> tuple[int, int]:
    model(TOKENS, labels=TOKENS)  # what is made once is not counted
    with Products() as counter:
        model(TOKENS, labels=TOKENS).loss.backward()
    return counter.count, counter.largest


def test_products_of_a_step():
    # 4 stacks a layer, 2 layers: forward 2 (all outputs and x Aᵀ; B), backward 4 (B; x; A; B's own); head 2.
    # The first layer's input needs no gradient: 1 less.
    _, fused = pair()
    assert products(fused)[0] == 8 * (2 + 4) + 2 - 1


def test_largest_tensor_of_a_step_is_the_output_of_gate_and_up():
    # 8 tokens, 2 * 32 outputs and 2 * 4 rows of A; nothing as large as a weight times anything
    _, fused = pair()
    assert products(fused)[1] == 8 * (2 * 32 + 2 * 4)


#: Kind to a function that makes a network in which not all of q, k and v read one input, and what it reads.
CROSSED = {
    "whisper": (
        lambda: WhisperForConditionalGeneration(TINY_WHISPER),
        {
            "input_features": torch.linspace(-1, 1, 160).reshape(1, 8, 20),
            "decoder_input_ids": torch.tensor([[1, 2, 3]]),
        },
    ),
    "detr": (lambda: TINY["detr"](3, 4), {"pixel_values": torch.ones(1, 3, 64, 64)}),
}


@pytest.mark.parametrize("kind", CROSSED)
def test_layers_with_two_inputs_are_computed_once_for_each(kind, monkeypatch):
    make, inputs = CROSSED[kind]

    def gradients_of(model: nn.Module) -> dict[str, torch.Tensor]:
        model(**inputs).logits.square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}

    models, calls = [], []
    for _ in range(2):
        torch.manual_seed(0)
        model = add_adapter(make(), causal_lm=False, rank=2, targets=["q_proj", "k_proj", "v_proj"])
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.constant_(parameter, 0.1)
        models.append(model)
    fuse(models[1])
    forward = LoraStack.forward
    monkeypatch.setattr(LoraStack, "forward", lambda self, *args: calls.append(self) or forward(self, *args))
    plain, fused = map(gradients_of, models)
    assert plain.keys() == fused.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(fused[name], gradient, rtol=1e-4, atol=1e-6)
    assert len(calls) == len(set(map(id, calls))) == len(stacks(models[1]))
    # of whisper: qkv of the encoder and of the decoder, q and kv across; of detr: qk and v twice, and three across
    assert (
        sorted(len(stack.layers) for stack in stacks(models[1]))
        == {
            "whisper": [1, 2, 3, 3],
            "detr": [1, 1, 1, 1, 1, 2, 2],
        }[kind]
    )


def test_no_frozen_weight_stays_in_the_file_that_it_was_read_from(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    model = add_adapter(LlamaForCausalLM.from_pretrained(tmp_path), seed=3, rank=4)
    places = {name: p.data_ptr() for name, p in model.named_parameters() if not p.requires_grad}
    fuse(model)
    assert all(p.data_ptr() != places[name] for name, p in model.named_parameters() if name in places)
