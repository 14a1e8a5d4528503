"""An adapter in PEFT's own format as the initial one: what must agree, and what is never read."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.conftest import tiny_llama

from fedcollm.config import AdapterConfig
from fedcollm.errors import UserError
from fedcollm.models.adapters import add_adapter, read_adapter, trainable
from fedcollm.models.fused.patch import fuse
from fedcollm.models.pretrained import load_tokenizer
from fedcollm.models.warm_start import check_start, other_base, warm_start


@pytest.fixture
def trained(tmp_path):
    """What somebody saved with PEFT alone: rank 4, α 8, on all linear layers."""
    model = get_peft_model(tiny_llama(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    torch.manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    model.peft_config["default"].base_model_name_or_path = "their/base"
    model.save_pretrained(tmp_path / "trained", save_embedding_layers=False)
    return tmp_path / "trained"


def started(section: AdapterConfig, kept):
    model = add_adapter(tiny_llama(), section, base_name="our/base")
    warm_start(model, section, kept)
    fuse(model)
    return model


def section(trained, **changes) -> AdapterConfig:
    return AdapterConfig(**{"rank": 4, "alpha": 8, "start": trained, **changes})


def test_model_computes_what_it_did_for_peft(trained, tmp_path, monkeypatch):
    from peft import PeftModel

    said: list[str] = []
    monkeypatch.setattr("fedcollm.models.warm_start.say", said.append)
    model = started(section(trained), tmp_path / "base" / "slm-start")
    tokens = torch.tensor([[2, 3, 4, 5]])
    with torch.no_grad():
        expected = PeftModel.from_pretrained(tiny_llama(), str(trained))(tokens).logits
        torch.testing.assert_close(model(tokens).logits, expected, atol=1e-5, rtol=1e-5)
    saved = load_file(trained / "adapter_model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in read_adapter(model).items())
    assert len(said) == 1
    assert "trained on their/base; here, its base is our/base. If these are not" in said[0]


def test_base_of_the_same_name_needs_no_note(trained):
    assert other_base(section(trained), "x", "their/base") is None
    assert "trained on their/base; here, its base is x." in (other_base(section(trained), "x") or "")


def test_resumed_run_needs_only_its_copy(trained, tmp_path):
    kept = tmp_path / "base" / "slm-start"
    first = read_adapter(started(section(trained), kept))
    shutil.rmtree(trained)
    again = read_adapter(started(section(trained), kept))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_frozen_half_starts_too(trained, tmp_path):
    model = started(section(trained, freeze_a=True), tmp_path / "kept")
    saved = load_file(trained / "adapter_model.safetensors")
    assert all("lora_B" in name for name in trainable(model))
    frozen = [p for name, p in model.named_parameters() if "lora_A" in name]
    halves = [tensor for name, tensor in saved.items() if "lora_A" in name]
    assert len(frozen) == len(halves) == 14
    assert {round(float(p.sum()), 4) for p in frozen} == {round(float(tensor.sum()), 4) for tensor in halves}
    check_start(section(trained, freeze_a=True), trainable(model))  # as `check` does, which knows no A


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 8, "alpha": 16}, ["rank is 4 there, and 8 in", "alpha is 8 there, and 16"]),
        ({"kind": "loha"}, ["kind is LORA there, and LOHA in"]),
        ({"kind": "dora"}, ["options.use_dora is None there, and True in"]),
        ({"options": {"use_rslora": True}}, ["options.use_rslora is None there, and True in"]),
        (
            {"targets": ["q_proj"]},
            ["does not fit the model: tensor", "missing in the model", "Its targets are down_proj, gate_proj, k_proj"],
        ),
    ],
    ids=str,
)
def test_each_difference_is_named(trained, tmp_path, changes, words):
    with pytest.raises(UserError) as error:
        started(section(trained, **changes), tmp_path / "kept")
    assert all(word in str(error.value) for word in words)
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("missing", "changes", "words"),
    [
        ("use_rslora", {"options": {"use_rslora": True}}, "use_rslora is None there, and True in"),
        ("lora_alpha", {"alpha": 16}, r"alpha is 8 there, and 16\.0 in"),  # PEFT's own default
        ("alpha_pattern", {"options": {"alpha_pattern": {"q_proj": 2}}}, "alpha_pattern is None there, and {'q_proj'"),
    ],
)
def test_key_that_the_file_lacks_has_the_default_of_peft(trained, missing, changes, words):
    file = trained / "adapter_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != missing}))
    with pytest.raises(UserError, match=words):
        check_start(section(trained, **changes), {})
    check_start(section(trained), load_file(trained / "adapter_model.safetensors"))


def test_other_targets_of_a_list_are_named(tmp_path):
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"])
    get_peft_model(tiny_llama(), settings).save_pretrained(tmp_path / "a", save_embedding_layers=False)
    with pytest.raises(UserError, match=r"Its targets are q_proj\. Give"):
        started(section(tmp_path / "a", targets=["v_proj"]), tmp_path / "kept")
    started(section(tmp_path / "a", targets=["q_proj"], dropout=0.5), tmp_path / "kept")  # dropout may differ


def damage_weights(place):
    state = load_file(place / "adapter_model.safetensors")
    state[min(state)][0, 0] = float("nan")
    save_file(state, place / "adapter_model.safetensors")


def to_pickle(place):
    (place / "adapter_model.safetensors").rename(place / "adapter_model.bin")


def change_base(place):
    settings = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps(settings | {"init_lora_weights": "pissa_niter_4"}))


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (shutil.rmtree, "does not exist"),
        (to_pickle, r"adapter_model\.bin, a pickle"),
        (damage_weights, "NaN or infinite"),
        (lambda place: (place / "adapter_model.safetensors").write_bytes(b"?"), r"safetensors can't be read"),
        (lambda place: (place / "adapter_model.safetensors").unlink(), r"has no adapter_model\.safetensors"),
        (lambda place: (place / "adapter_config.json").write_text("{"), r"adapter_config\.json can't be read"),
        (lambda place: (place / "adapter_config.json").write_text("[]"), "no JSON object"),
        (change_base, "pissa_niter_4, which changed its base"),
    ],
)
def test_what_is_no_sound_adapter_is_refused(trained, tmp_path, damage, match):
    damage(trained)
    with pytest.raises(UserError, match=match):
        started(section(trained), tmp_path / "kept")


def test_run_directory_is_pointed_to_its_adapter(trained, tmp_path):
    (tmp_path / "run" / "adapters").mkdir(parents=True)
    trained.rename(tmp_path / "run" / "adapters" / "slm")
    with pytest.raises(UserError, match=r"such as .*adapters"):
        started(section(tmp_path / "run"), tmp_path / "kept")
    started(section(tmp_path / "run" / "adapters" / "slm"), tmp_path / "kept")


def test_source_that_is_an_adapter_says_so(trained):
    with pytest.raises(UserError, match=r"PEFT adapter of their/base.*adapter\.start"):
        load_tokenizer(str(trained))
