"""Base models from directories, GGUF files and hub ids; the cache."""

import json
import os
import shutil
import socket
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from fedcollm.errors import UserError
from fedcollm.models import pretrained
from fedcollm.models.pretrained import (
    base_directory,
    hub_reachable,
    load_causal_lm,
    load_config,
    load_tokenizer,
    start_tokens,
)
from fedcollm.models.pruning import prune_layers
from fedcollm.storage import cache_directory

TOKENS = torch.tensor([[2, 8, 11, 5, 9]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for every test."""
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- directories ---


def test_directory_with_all_layers_is_used_as_it_is(model_directories, cache):
    assert base_directory(model_directories["slm"], None) == model_directories["slm"]
    assert not cache.exists()


def test_pruned_directory_is_made_in_the_cache(model_directories, cache):
    place = base_directory(model_directories["llm"], 2)
    assert place.startswith(str(cache))
    pruned = load_causal_lm(place, torch.float32)
    expected = prune_layers(load_causal_lm(model_directories["llm"], torch.float32), 2)
    assert torch.equal(logits(pruned), logits(expected))
    assert load_tokenizer(place)("red cat").input_ids == [2, 5]
    assert [path.name for path in cache.iterdir() if path.suffix != ".lock"] == [os.path.basename(place)]


def test_pruned_directory_is_made_once(model_directories, monkeypatch):
    place = base_directory(model_directories["llm"], 2)

    def fail(*_):
        raise AssertionError("built again")

    monkeypatch.setattr(pretrained, "_prune", fail)
    assert base_directory(model_directories["llm"], 2) == place


def test_layers_can_be_given_by_their_indices(model_directories, cache):
    place = base_directory(model_directories["llm"], [0, 3])
    expected = prune_layers(load_causal_lm(model_directories["llm"], torch.float32), [0, 3])
    assert torch.equal(logits(load_causal_lm(place, torch.float32)), logits(expected))
    assert place.endswith("layers-0-3")


def test_different_depths_have_different_places(model_directories):
    two, three = base_directory(model_directories["llm"], 2), base_directory(model_directories["llm"], 3)
    assert (load_config(two).num_hidden_layers, load_config(three).num_hidden_layers) == (2, 3)


def test_directories_of_one_name_are_not_mistaken_for_each_other(model_directories, tmp_path):
    other = tmp_path / "elsewhere" / "llm"
    shutil.copytree(model_directories["slm"], other)
    pruned, pruned_other = base_directory(model_directories["llm"], 1), base_directory(str(other), 1)
    assert (load_config(pruned).hidden_size, load_config(pruned_other).hidden_size) == (32, 16)


def test_pruned_copy_follows_a_directory_whose_weights_were_replaced(model_directories, tmp_path):
    source = tmp_path / "mine"
    shutil.copytree(model_directories["slm"], source)
    first = logits(load_causal_lm(base_directory(str(source), 1), torch.float32))
    model = load_causal_lm(str(source), torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.add_(1.0)
    model.save_pretrained(source)
    second = logits(load_causal_lm(base_directory(str(source), 1), torch.float32))
    assert not torch.equal(first, second)


def test_failed_build_leaves_nothing_in_the_cache(model_directories, cache):
    with pytest.raises(UserError, match=r"layers: 9 .*4"):
        base_directory(model_directories["llm"], 9)
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []


def test_cache_is_in_the_home_directory_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("FEDCOLLM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "fedcollm"


def test_dtype_is_that_asked_for(model_directories):
    assert load_causal_lm(model_directories["slm"], torch.bfloat16).dtype == torch.bfloat16


def test_tokenizer_without_padding_pads_with_its_end(model_directories, tmp_path):
    source = tmp_path / "mine"
    shutil.copytree(model_directories["slm"], source)
    tokenizer = load_tokenizer(str(source))
    tokenizer.pad_token, tokenizer.eos_token = None, "bad"
    tokenizer.save_pretrained(source)
    assert load_tokenizer(str(source)).pad_token_id == 15


# --- sources that are not there ---


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "/no/such/model.gguf",
            r"no such file: /no/such/model.gguf. Give an existing .gguf file, a directory or a hub id",
        ),
        (
            "/no/such/directory",
            r"no such directory: /no/such/directory. Give an existing directory, a .gguf file or a hub id",
        ),
        ("./nothing", r"no such directory: ./nothing"),
        (
            "nobody/no-such-model",
            r"'nobody/no-such-model' is neither a directory nor a shipped model \(smollm2-135m\).*local directory",
        ),
    ],
)
def test_missing_source_is_refused_with_advice_and_without_the_network(source, message, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(UserError, match=message):
        base_directory(source, 2)


def test_hub_is_not_asked_while_offline(monkeypatch):
    monkeypatch.setattr(pretrained.hub_constants, "is_offline_mode", lambda: True)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    assert not hub_reachable()


def test_unreachable_hub_is_the_users_error(monkeypatch):
    def refuse(address, timeout):
        assert address[1] == 443
        assert timeout <= 3
        raise TimeoutError

    monkeypatch.setattr(pretrained.hub_constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(UserError, match="hub can't be reached"):
        base_directory("nobody/no-such-model", None)


def test_downloaded_hub_model_needs_no_hub(monkeypatch, tmp_path):
    (tmp_path / "models--somebody--some-model").mkdir()
    monkeypatch.setattr(pretrained.hub_constants, "HF_HUB_CACHE", str(tmp_path))
    assert base_directory("somebody/some-model", None) == "somebody/some-model"


def test_directory_without_a_model_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="can't be loaded"):
        load_causal_lm(str(tmp_path), torch.float32)
    with pytest.raises(UserError, match="can't be loaded"):
        load_config(str(tmp_path))


def test_directory_with_broken_weights_is_the_users_error(model_directories, tmp_path):
    source = tmp_path / "mine"
    shutil.copytree(model_directories["slm"], source)
    (source / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="mine' can't be loaded"):
        load_causal_lm(str(source), torch.float32)


class Program:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def pickled(place: Path) -> None:
    (place / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1), "program": Program()}, place / "pytorch_model.bin")


def texts(name: str, text: str):
    return lambda place: (place / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pickled, "hold other things than tensors, which are never run"),
        (texts("config.json", "null"), "can't be loaded"),
        (texts("config.json", '{"model_type": "llama", "hidden_size": "wide"}'), "hidden_size"),
        (texts("config.json", '{"model_type": "llama", "num_attention_heads": 0}'), "can't be loaded"),
        (texts("config.json", '{"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 32}'), "can't be loaded"),
        (texts("tokenizer_config.json", "[]"), "can't be loaded"),
    ],
)
def test_damaged_directories_are_the_users_error(damage, message, model_directories, tmp_path, monkeypatch):
    place = Path(shutil.copytree(model_directories["slm"], tmp_path / "model"))
    damage(place)
    monkeypatch.chdir(tmp_path)
    load = load_tokenizer if (place / "tokenizer_config.json").read_text() == "[]" else load_causal_lm
    with pytest.raises(UserError, match=f"model source .*{message}"):
        load(str(place), *[torch.float32] * (load is load_causal_lm))
    assert not (tmp_path / "ran").exists()


def test_weights_in_a_bin_file_are_read(model_directories, tmp_path):
    place = Path(shutil.copytree(model_directories["slm"], tmp_path / "model"))
    whole = load_causal_lm(str(place), torch.float32)
    (place / "model.safetensors").unlink()
    torch.save(whole.state_dict(), place / "pytorch_model.bin")
    assert torch.equal(logits(load_causal_lm(str(place), torch.float32)), logits(whole))


def test_file_that_is_no_gguf_is_the_users_error(tmp_path, cache):
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"broken\.gguf"):
        base_directory(str(tmp_path / "broken.gguf"), None)
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []


def test_shipped_model_whose_package_is_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(pretrained.SHIPPED, "tiny", ("no-such-package", "pip install no-such-package"))
    with pytest.raises(UserError, match="pip install no-such-package"):
        base_directory("tiny", None)


# --- GGUF files ---

PIECES = ["<pad>", "<unk>", "<s>", "</s>", "a", "b", "c", "Ġ", "Ġa", "ab"]
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_llama():
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32}
    shape = LlamaConfig(
        vocab_size=10, hidden_size=32, intermediate_size=64, num_hidden_layers=2, tie_word_embeddings=True, **heads
    )
    return AutoModelForCausalLM.from_config(shape).eval()


def write_gguf(path: Path, model, head: torch.Tensor | None) -> None:
    """A Llama of 2 layers and 2 heads of 16 as llama.cpp would write it; without a head of its own it is tied."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(10)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(PIECES)
    writer.add_token_types([3] * 4 + [1] * 6)  # control, normal
    writer.add_token_merges(["Ġ a", "a b"])
    for add, token in zip(("unk", "bos", "eos", "pad"), (1, 2, 3, 0), strict=True):
        getattr(writer, f"add_{add}_token_id")(token)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    if head is not None:
        writer.add_tensor("output.weight", head.numpy())
    for layer in (0, 1):
        for name, short in GGUF_NAMES.items():
            tensor = state[f"model.layers.{layer}.{name}.weight"]
            if short in ("attn_q", "attn_k"):  # llama.cpp interleaves the two halves of each rotary head
                tensor = tensor.reshape(2, 2, 8, 32).swapaxes(1, 2).reshape(32, 32).copy()
            writer.add_tensor(f"blk.{layer}.{short}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


GGUF_TOKENS = torch.tensor([[4, 5, 8, 9]])


def gguf_logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(GGUF_TOKENS, use_cache=False).logits


def test_gguf_file_is_converted_once_into_safetensors(tmp_path, cache, monkeypatch):
    model, file = gguf_llama(), tmp_path / "Tiny.gguf"
    write_gguf(file, model, head=None)
    place = base_directory(str(file), None)
    monkeypatch.setattr(pretrained, "_convert_gguf", lambda *_: pytest.fail("converted again"))
    assert base_directory(str(file), None) == place
    assert [str(path) for path in cache.iterdir() if path.suffix != ".lock"] == [place]
    assert os.path.basename(place).startswith("tiny-")
    assert (Path(place) / "model.safetensors").is_file()
    loaded = load_causal_lm(place, torch.float32)
    torch.testing.assert_close(gguf_logits(loaded), gguf_logits(model))
    assert load_tokenizer(str(file))("a ab").input_ids == [4, 8, 5]


def test_changed_gguf_file_is_converted_again(tmp_path):
    model, file = gguf_llama(), tmp_path / "tiny.gguf"
    write_gguf(file, model, head=None)
    first = base_directory(str(file), None)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    write_gguf(file, model, head=None)
    os.utime(file, ns=(1, 1))
    torch.testing.assert_close(
        gguf_logits(load_causal_lm(base_directory(str(file), None), torch.float32)), gguf_logits(model)
    )
    assert base_directory(str(file), None) != first


def test_gguf_file_is_pruned(tmp_path):
    model, file = gguf_llama(), tmp_path / "tiny.gguf"
    write_gguf(file, model, head=None)
    pruned = load_causal_lm(base_directory(str(file), 1), torch.float32)
    torch.testing.assert_close(gguf_logits(pruned), gguf_logits(prune_layers(model, 1)))


def test_gguf_head_that_is_the_embedding_quantised_otherwise_is_tied(tmp_path):
    model, file = gguf_llama(), tmp_path / "tiny.gguf"
    embedding = model.get_input_embeddings().weight.detach()
    write_gguf(file, model, head=embedding * 1.001)
    loaded = load_causal_lm(base_directory(str(file), None), torch.float32)
    assert loaded.config.tie_word_embeddings
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    torch.testing.assert_close(loaded.get_input_embeddings().weight, embedding, atol=0, rtol=2e-3)  # either of the two


def test_gguf_head_of_its_own_stays(tmp_path):
    model, file = gguf_llama(), tmp_path / "tiny.gguf"
    head = torch.randn(10, 32, generator=torch.Generator().manual_seed(5))
    write_gguf(file, model, head=head)
    loaded = load_causal_lm(base_directory(str(file), None), torch.float32)
    assert not loaded.config.tie_word_embeddings
    assert torch.equal(loaded.get_output_embeddings().weight, head)
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_tokens_before_every_text(tokenizer, pieces):
    assert start_tokens(pieces) == (1,)
    assert start_tokens(tokenizer) == ()


@pytest.mark.parametrize("name", ["AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"])
def test_code_that_comes_with_a_model_is_neither_run_nor_asked_about(tmp_path, monkeypatch, name):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\nclass Own: pass\n"
    (tmp_path / "own.py").write_text(code)
    own = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "own.Own") | {"AutoTokenizer": ["own.Own", None]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": own}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Own", "auto_map": own}))
    with pytest.raises(UserError, match="can't be loaded"):
        pretrained.from_pretrained(pretrained.transformers_class(name), str(tmp_path))
    assert not ran.exists()
