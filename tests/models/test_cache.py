"""The cache of models: what an entry is named after, and what is left of processes that were killed."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers.utils import hub

from fedcollm.errors import UserError
from fedcollm.models import cache as caches
from fedcollm.models import pretrained
from fedcollm.models.cache import cached, entry_stem
from fedcollm.models.pretrained import base_directory, load_causal_lm, stem


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(model_directories, tmp_path) -> Path:
    return Path(shutil.copytree(model_directories["slm"], tmp_path / "mine"))


# --- names ---


def test_long_list_of_layers_is_a_digest_in_the_name(model, monkeypatch):
    monkeypatch.setattr(pretrained, "_LONGEST_NAME", len("layers-0"))  # 255 characters are too many for a file system
    names = [Path(base_directory(str(model), layers)).name for layers in ([0], [1], [0, 1])]
    assert [name.rpartition("-layers-")[2] for name in names[:2]] == ["0", "1"]
    assert len(names[2].rpartition("-layers-")[2]) == 32


def test_a_directory_has_its_name_and_a_digest_that_nobody_can_search_for():
    assert len(entry_stem("mine", Path("no/where")).removeprefix("mine-")) == 32  # 128 bits


def test_a_file_that_is_touched_or_copied_is_the_same(model, tmp_path):
    before = stem(str(model), model)
    for file in model.iterdir():
        os.utime(file, (1, 1))
    assert stem(str(model), model) == before
    other = Path(shutil.copytree(model, tmp_path / "elsewhere" / "mine"))
    assert stem(str(other), other) == before


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.gguf", "generation_config.json", "chat_template.jinja", "own.py", "merges.txt"]
)
def test_every_file_that_a_model_consists_of_counts(model, name):
    seen = [stem(str(model), model)]
    for content in (b"one", b"two"):  # of one size
        (model / name).write_bytes(content)
        os.utime(model / name, (1, 1))
        seen.append(stem(str(model), model))
    assert len(set(seen)) == 3


def test_another_tokenizer_is_another_model(model):
    before = stem(str(model), model)
    file = model / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"red"', '"rot"'), encoding="utf-8")
    assert stem(str(model), model) != before


def test_a_gguf_file_is_its_content(tmp_path):
    (tmp_path / "one").mkdir()
    file, same = tmp_path / "a.gguf", tmp_path / "one" / "a.gguf"
    file.write_bytes(b"GGUF1")
    same.write_bytes(b"GGUF1")
    before = stem(str(file), file)
    assert stem(str(same), same) == before
    file.write_bytes(b"GGUF2")
    assert stem(str(file), file) != before


def test_a_hub_id_is_the_commit_that_it_stands_for(tmp_path, monkeypatch, model):
    home = tmp_path / "hub" / "models--somebody--some-model"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(model, home / "snapshots" / commit)
    (home / "refs").mkdir()
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = []
    for commit in ("a" * 40, "b" * 40, "a" * 40):
        (home / "refs" / "main").write_text(commit, encoding="utf-8")
        found.append(stem("somebody/some-model", Path("somebody/some-model")))
    assert found[0] == found[2] != found[1]


# --- entries ---


def write(target: Path) -> None:
    (target / "file").touch()


def test_what_a_killed_process_left_of_an_entry_is_removed_and_nothing_else(cache):
    kept = [".one-two-abcdefgh", ".one.lock", "one-two", ".unfinished-one", ".other-abcdefgh", ".one-abcdefgh2"]
    for name in [".one-abcdefgh", ".one-a_c3efgh", *kept]:
        (cache / name).mkdir(parents=True)
    (cache / ".one.lock").rmdir()
    cached("one", write)
    assert sorted(path.name for path in cache.iterdir()) == sorted(["one", *kept])


def test_an_entry_is_found_without_writing(cache, monkeypatch):
    cached("one", write)
    monkeypatch.setattr(caches, "one_at_a_time", lambda *_: pytest.fail("a lock was taken"))
    assert cached("one", write) == cache / "one"


def test_a_file_in_place_of_an_entry_is_named(cache):
    cache.mkdir()
    (cache / "one").touch()
    with pytest.raises(UserError, match=r"cache/one is no directory.*Delete it"):
        cached("one", write)


@pytest.mark.parametrize("spoil", ["weights", "configuration", "all"])
def test_a_damaged_entry_is_named_with_what_to_do(cache, model, spoil):
    made = cached("one", lambda target: shutil.copytree(model, target, dirs_exist_ok=True) and None)
    weights = made / "model.safetensors"
    if spoil == "weights":
        weights.write_bytes(weights.read_bytes()[:100])
    elif spoil == "configuration":
        (made / "config.json").write_text("{", encoding="utf-8")
    else:
        for file in made.iterdir():
            file.unlink()
    with pytest.raises(UserError, match=rf"damaged entry of the cache.*delete {made}"):
        load_causal_lm(str(made), torch.float32)
    assert json.loads((model / "config.json").read_text(encoding="utf-8"))["model_type"] == "llama"
