"""Adapters: what is trainable, how it is read, written and saved in PEFT's own format."""

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.parties import add_adapter
from torch import nn

from fedcollm.config import AdapterConfig
from fedcollm.errors import UserError
from fedcollm.models import adapters
from fedcollm.models.adapters import (
    load_adapter,
    parameter_counts,
    read_adapter,
    resolve_device,
    resolve_dtype,
    save_adapter,
    without_adapter,
    write_adapter,
)

KINDS = ["lora", "dora", "ia3"]
TOKENS = torch.tensor([[2, 8, 11, 5, 9]])


def adapted(llama: nn.Module, **options) -> peft.PeftModel:
    """A copy of a base with an adapter."""
    return add_adapter(copy.deepcopy(llama), **options)


def shaken(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's adapter with noise added, so that it differs from any initial one."""
    generator = torch.Generator().manual_seed(3)
    return {name: t + 0.3 * torch.randn(t.shape, generator=generator) for name, t in read_adapter(model).items()}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# --- what is trainable ---


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        # A layer, rank 8: q, k, v, o are 16 -> 16, 8 * (16 + 16) = 256 each; gate, up are 16 -> 32 and down 32 -> 16,
        # 8 * (16 + 32) = 384 each: 4 * 256 + 3 * 384 = 2176. Two layers:
        ("lora", 4352),
        # LoRA, and a magnitude an output: 4 * 16 + 32 + 32 + 16 = 144 a layer
        ("dora", 4352 + 288),
        # PEFT's own choice for Llama, an input or output each: k 16, v 16, down 32
        ("ia3", 128),
    ],
)
def test_adapter_has_as_many_parameters_as_counted_by_hand(llama, kind, count):
    base = sum(parameter.numel() for parameter in llama.parameters())
    model = adapted(llama, kind=kind, rank=8)
    assert parameter_counts(model) == (count, base)
    assert sum(tensor.numel() for tensor in read_adapter(model).values()) == count


def test_frozen_a_is_neither_trained_nor_part_of_the_base(llama):
    base = sum(parameter.numel() for parameter in llama.parameters())
    model = adapted(llama, rank=8, freeze_a=True)
    # B alone, rank 8: q, k, v, o 8 * 16 each, gate and up 8 * 32, down 8 * 16: 1152 a layer
    assert parameter_counts(model) == (2304, base)


def test_lora_of_a_tiny_llama_has_two_matrices_a_linear_layer(llama):
    adapter = read_adapter(adapted(llama, rank=4))
    assert len(adapter) == 2 * 7 * 2
    assert adapter["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].shape == (4, 16)
    assert adapter["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"].shape == (16, 4)


def test_targets_are_the_named_modules_only(llama):
    names = read_adapter(adapted(llama, rank=1, targets=["q_proj", "v_proj"]))
    assert {name.split(".")[6] for name in names} == {"q_proj", "v_proj"}
    assert len(names) == 2 * 2 * 2


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_holds_the_trainable_tensors_and_nothing_of_the_base(llama, kind):
    model = adapted(llama, kind=kind)
    adapter = read_adapter(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(adapter) == len(trainable)
    assert all(torch.equal(tensor, parameter) for tensor, parameter in zip(adapter.values(), trainable, strict=True))
    assert not any(name.endswith("proj.weight") or "embed" in name or "norm" in name for name in adapter)


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapter_changes_no_logits(llama, kind):
    torch.testing.assert_close(logits(adapted(llama, kind=kind)), logits(llama), atol=1e-5, rtol=1e-5)


def test_initial_adapter_depends_on_its_seed_alone(llama):
    first = read_adapter(adapted(llama, seed=1))
    torch.manual_seed(99)
    assert equal(read_adapter(adapted(llama, seed=1)), first)
    assert not equal(read_adapter(adapted(llama, seed=2)), first)


def test_alpha_over_rank_scales_the_adapter(llama):
    # α/r is 1 and 2: twice the scale is twice the B matrices
    one, two = adapted(llama, rank=4, alpha=4), adapted(llama, rank=4, alpha=8)
    adapter = shaken(one)
    write_adapter(one, {name: 2 * t if "lora_B" in name else t for name, t in adapter.items()})
    write_adapter(two, adapter)
    assert (logits(two) - logits(llama)).abs().max() > 1e-3
    torch.testing.assert_close(logits(one), logits(two))


def test_options_reach_the_peft_config(llama):
    model = adapted(llama, rank=4, alpha=8, dropout=0.25, options={"use_rslora": True})
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (4, 8, 0.25, True)


def test_image_models_have_no_causal_task_type(llama):
    assert adapted(llama, causal_lm=False).peft_config["default"].task_type is None
    assert adapted(llama).peft_config["default"].task_type == "CAUSAL_LM"


@pytest.mark.parametrize("kind", ["LORA", "Dora"])
def test_method_names_ignore_case(llama, kind):
    assert equal(
        read_adapter(adapted(llama, kind=kind, seed=1)), read_adapter(adapted(llama, kind=kind.lower(), seed=1))
    )


def test_unknown_method_lists_the_known_ones(llama):
    with pytest.raises(UserError, match=r"adapter\.kind: .*'lorra'.*\blora\b"):
        adapted(llama, kind="lorra")


def test_unknown_target_lists_the_models_linear_layers(llama):
    with pytest.raises(UserError, match=r"adapter.targets: .*'c_attn'.*\bq_proj\b"):
        adapted(llama, targets=["c_attn"])


def test_unknown_option_lists_the_fields(llama):
    with pytest.raises(UserError, match=r"adapter\.options: .*use_rslore\b.*use_rslora"):
        adapted(llama, options={"use_rslore": True})


def test_option_value_that_peft_refuses_is_the_users_error(llama):
    with pytest.raises(UserError, match="adapter"):
        adapted(llama, rank=4, options={"init_lora_weights": "no such way"})


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (["embed_tokens"], {}),
        (["lm_head"], {}),
        (["q_proj", "model.embed_tokens"], {}),
        (["q_proj"], {"target_parameters": ["embed_tokens.weight"]}),
        (["q_proj"], {"target_parameters": ["lm_head.weight"]}),
    ],
)
def test_embedding_and_output_over_words_get_no_adapter(llama, targets, options):
    with pytest.raises(UserError, match=r"train \S+, part of an embedding or of the output layer"):
        adapted(llama, targets=targets, options=options)


def test_other_parameters_may_be_targets(llama):
    names = read_adapter(adapted(llama, targets=["k_proj"], options={"target_parameters": ["q_proj.weight"]}))
    assert {name.split(".")[6] for name in names} == {"k_proj", "q_proj"}


@pytest.mark.parametrize("kind", ["lora", "vera"])
@pytest.mark.parametrize("options", [{"modules_to_save": ["embed_tokens"]}, {"modules_to_save": ["q_proj"]}])
def test_what_a_caller_adds_to_the_options_later_is_not_trained_either(llama, kind, options):
    section = AdapterConfig(kind=kind, targets=["k_proj"]).model_copy(update={"options": options})
    with pytest.raises(UserError, match=r"part of (an embedding|the base model)"):
        adapters.add_adapter(copy.deepcopy(llama), section)


# --- FFA-LoRA: A at its random start ---


def products(model: peft.PeftModel, adapter: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """s B A of every layer, with this adapter."""
    write_adapter(model, adapter)
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "get_delta_weight")}
    return {name: layer.get_delta_weight("default").detach().clone() for name, layer in layers.items()}


def matrices(model: nn.Module, which: str) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if which in name}


def mean(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """3/4 of one and 1/4 of the other, as of clients with 3 and 1 examples."""
    return {name: (3 * one[name] + two[name]) / 4 for name in one}


def whole_numbers(tensors: dict[str, torch.Tensor], seed: int, factor: int = 1) -> dict[str, torch.Tensor]:
    """From -3 to 3 times a factor: sums and products of few of them are exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    return {n: factor * torch.randint(-3, 4, t.shape, generator=generator).float() for n, t in tensors.items()}


def test_frozen_a_leaves_b_alone_to_train_and_to_send(llama):
    model = adapted(llama, rank=8, freeze_a=True)
    base = sum(parameter.numel() for parameter in llama.parameters())
    # B of a layer, rank 8: q, k, v, o and down 8 * 16 = 128 each, gate and up 8 * 32 = 256: 5 * 128 + 2 * 256 = 1152.
    # two layers. A, which stays here and is shared by its seed, is no part of the base either
    assert parameter_counts(model) == (2304, base)
    adapter = read_adapter(model)
    assert all(name.endswith("lora_B.weight") for name in adapter)
    assert len(adapter) == 14
    assert sum(tensor.numel() for tensor in adapter.values()) == 2304


def test_frozen_a_is_that_of_lora_with_the_same_seed_at_every_party(llama):
    first = matrices(adapted(llama, seed=1, freeze_a=True), "lora_A")
    torch.manual_seed(99)
    assert equal(matrices(adapted(llama, seed=1, freeze_a=True), "lora_A"), first)
    assert equal(matrices(adapted(llama, seed=1), "lora_A"), first)
    assert not equal(matrices(adapted(llama, seed=2, freeze_a=True), "lora_A"), first)
    assert all(tensor.std() > 0.01 for tensor in first.values())


@pytest.mark.parametrize("freeze_a", [True, False])
def test_mean_of_adapters_is_the_mean_of_products_only_if_a_is_frozen(llama, freeze_a):
    model = adapted(llama, rank=2, alpha=2, freeze_a=freeze_a)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.copy_(whole_numbers({"a": parameter}, len(name))["a"])
    one, two = (whole_numbers(read_adapter(model), seed, 4) for seed in (1, 2))
    of_mean, expected = products(model, mean(one, two)), mean(products(model, one), products(model, two))
    assert len(expected) == 14
    assert equal(of_mean, expected) == freeze_a
    assert max(tensor.abs().max() for tensor in expected.values()) > 1


def test_saved_adapter_with_frozen_a_is_loaded_by_peft_alone_with_the_same_logits(llama, tmp_path):
    model = adapted(llama, seed=1, freeze_a=True)
    save_adapter(model, shaken(model), tmp_path / "slm")
    files = load_file(tmp_path / "slm" / "adapter_model.safetensors")
    assert sum("lora_A" in name for name in files) == 14  # the file is whole: who reads it need not know the seed
    torch.manual_seed(7)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(llama), str(tmp_path / "slm")).eval()
    assert (logits(loaded) - logits(llama)).abs().max() > 1e-4
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-6, rtol=1e-6)
    other = adapted(llama, seed=2, freeze_a=True)
    load_adapter(other, tmp_path / "slm")
    torch.testing.assert_close(logits(other), logits(model), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["dora", "ia3", "adalora"])
def test_frozen_a_is_refused_for_other_kinds(llama, kind):
    with pytest.raises(UserError, match=rf"adapter\.freeze_a: {kind} is not plain LoRA; set adapter\.kind: lora"):
        adapted(llama, kind=kind, freeze_a=True)
    assert len(read_adapter(adapted(llama, kind="LoRA", freeze_a=True))) == 14


def test_frozen_a_beside_doras_magnitudes_is_refused(llama):
    with pytest.raises(UserError, match=r"adapter\.freeze_a: .*use_dora"):
        adapted(llama, kind="lora", freeze_a=True, options={"use_dora": True})


# --- reading and writing ---


@pytest.mark.parametrize("kind", KINDS)
def test_written_adapter_is_read_back_bit_for_bit(llama, kind):
    model = adapted(llama, kind=kind)
    adapter = shaken(model)
    write_adapter(model, adapter)
    assert equal(read_adapter(model), adapter)


def test_a_frozen_parameter_is_no_part_of_the_adapter_while_it_is_frozen(llama):
    model = adapted(llama)
    names = list(read_adapter(model))
    first = next(p for name, p in model.named_parameters() if name.replace(".default", "") == names[0])
    first.requires_grad_(False)
    assert list(read_adapter(model)) == names[1:]
    first.requires_grad_(True)
    assert list(read_adapter(model)) == names


def test_a_copied_model_has_parameters_of_its_own(llama):
    model = adapted(llama)
    before = read_adapter(model)
    write_adapter(copy.deepcopy(model), shaken(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in read_adapter(model).items())


def test_read_adapter_is_a_copy(llama):
    model = adapted(llama)
    before = read_adapter(model)
    kept = {name: tensor.clone() for name, tensor in before.items()}
    write_adapter(model, shaken(model))
    assert equal(before, kept)


def test_writing_an_adapter_leaves_the_base_alone(llama):
    model = adapted(llama)
    write_adapter(model, shaken(model))
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(llama))


@pytest.mark.parametrize("freeze_a", [False, True])
def test_model_without_its_adapter_is_its_base_and_has_it_back_afterward(llama, freeze_a):
    model = adapted(llama, freeze_a=freeze_a)
    write_adapter(model, shaken(model))
    before, trainable = logits(model), read_adapter(model)
    with without_adapter(model):
        assert torch.equal(logits(model), logits(llama))
    assert torch.equal(logits(model), before)
    assert equal(read_adapter(model), trainable)  # PEFT alone would make a frozen A trainable
    with without_adapter(llama):
        assert logits(llama).shape == before.shape


def without_first(adapter: dict) -> dict:
    return dict(list(adapter.items())[1:])


def with_another(adapter: dict) -> dict:
    return adapter | {"another": torch.zeros(1)}


def with_last_transposed(adapter: dict) -> dict:
    name = list(adapter)[-1]
    return adapter | {name: adapter[name].T.contiguous()}


@pytest.mark.parametrize("spoil", [without_first, with_another, with_last_transposed])
def test_adapter_that_does_not_fit_is_refused_and_the_model_unchanged(llama, spoil):
    model = adapted(llama)
    before = read_adapter(model)
    with pytest.raises(ValueError, match="adapter does not fit the model"):
        write_adapter(model, spoil(shaken(model)))
    assert equal(read_adapter(model), before)


def test_refusal_names_the_tensor(llama):
    model = adapted(llama)
    with pytest.raises(ValueError, match="tensor another is unknown"):
        write_adapter(model, with_another(read_adapter(model)))
    with pytest.raises(ValueError, match=r"down_proj.lora_B.weight is \[\(8, 16\), .*, not \[\(16, 8\)"):
        write_adapter(model, with_last_transposed(read_adapter(model)))


# --- files ---


@pytest.mark.parametrize("kind", KINDS)
def test_saved_adapter_is_loaded_by_peft_alone_with_the_same_logits(llama, kind, tmp_path):
    model = adapted(llama, kind=kind)
    save_adapter(model, shaken(model), tmp_path / "slm")
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(llama), str(tmp_path / "slm")).eval()
    assert (logits(loaded) - logits(llama)).abs().max() > 1e-4
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_names_are_those_of_peft_files(llama, kind, tmp_path):
    model = adapted(llama, kind=kind)
    save_adapter(model, read_adapter(model), tmp_path / "slm")
    assert load_file(tmp_path / "slm" / "adapter_model.safetensors").keys() == read_adapter(model).keys()


def test_saved_adapter_names_its_base(llama, tmp_path):
    model = adapted(llama, base_name="/somewhere/base")
    save_adapter(model, read_adapter(model), tmp_path / "slm")
    config = json.loads((tmp_path / "slm" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "/somewhere/base"


def test_saving_replaces_the_directory_and_leaves_nothing_else(llama, tmp_path):
    model = adapted(llama)
    first, second = read_adapter(model), shaken(model)
    save_adapter(model, first, tmp_path / "slm")
    (tmp_path / "slm" / "stray").touch()
    save_adapter(model, second, tmp_path / "slm")
    assert equal(load_file(tmp_path / "slm" / "adapter_model.safetensors"), second)
    assert not (tmp_path / "slm" / "stray").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["slm"]


@pytest.mark.parametrize("kind", KINDS)
def test_saved_adapter_is_loaded_into_another_model(llama, kind, tmp_path):
    model, other = adapted(llama, kind=kind, seed=1), adapted(llama, kind=kind, seed=2)
    adapter = shaken(model)
    save_adapter(model, adapter, tmp_path / "slm")
    load_adapter(other, tmp_path / "slm")
    assert equal(read_adapter(other), adapter)


def test_missing_adapter_is_the_users_error(llama, tmp_path):
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        load_adapter(adapted(llama), tmp_path)


def saved(llama, directory, **options) -> dict[str, torch.Tensor]:
    model = adapted(llama, **options)
    save_adapter(model, shaken(model), directory)
    return load_file(directory / "adapter_model.safetensors")


def test_adapter_file_with_more_tensors_is_refused(llama, tmp_path):
    saved(llama, tmp_path / "slm")
    with pytest.raises(UserError, match="does not fit the model"):
        load_adapter(adapted(llama, targets=["q_proj"]), tmp_path / "slm")


def test_adapter_file_with_fewer_tensors_is_refused(llama, tmp_path):
    saved(llama, tmp_path / "slm", targets=["q_proj"])
    with pytest.raises(UserError, match="does not fit the model"):
        load_adapter(adapted(llama), tmp_path / "slm")


def test_adapter_file_of_another_rank_is_refused(llama, tmp_path):
    saved(llama, tmp_path / "slm", rank=4)
    with pytest.raises(UserError, match="does not fit the model"):
        load_adapter(adapted(llama, rank=8), tmp_path / "slm")


def test_adapter_file_that_is_no_safetensors_is_the_users_error(llama, tmp_path):
    saved(llama, tmp_path / "slm")
    (tmp_path / "slm" / "adapter_model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(UserError, match="slm"):
        load_adapter(adapted(llama), tmp_path / "slm")


def test_refused_adapter_file_leaves_the_model_unchanged(llama, tmp_path):
    tensors = saved(llama, tmp_path / "slm")
    save_file(tensors | {"another.lora_A.weight": torch.zeros(1)}, tmp_path / "slm" / "adapter_model.safetensors")
    model = adapted(llama)
    before = read_adapter(model)
    with pytest.raises(UserError, match="another"):
        load_adapter(model, tmp_path / "slm")
    assert equal(read_adapter(model), before)


# --- device and dtype ---


def test_named_device_is_taken():
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("available", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_device_is_cuda_where_there_is_one(monkeypatch, available, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert resolve_device("auto").type == device


def test_unknown_device_is_the_users_error():
    with pytest.raises(UserError, match=r"device: 'gpu'.*auto"):
        resolve_device("gpu")


def test_device_that_is_not_there_is_the_users_error():
    with pytest.raises(UserError, match="device: 'cuda:99'"):
        resolve_device("cuda:99")


@pytest.mark.parametrize(
    ("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_named_dtype_is_taken(name, dtype):
    assert resolve_dtype(name, torch.device("cpu")) is dtype


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "avx512_f": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_dtype_of_a_cpu_is_what_it_multiplies_natively(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_dtype("auto", torch.device("cpu")) is dtype


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_dtype_of_a_gpu_is_what_it_multiplies_natively(monkeypatch, supported, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert resolve_dtype("auto", torch.device("cuda")) is dtype
