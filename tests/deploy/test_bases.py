"""The base SLM of a deployment: made once, and the same at all parties, bit for bit."""

import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tests.modalities.vision.tiny_detectors import write_coco
from tests.transports.small_federation import small_config

from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.config.loading import load_config
from fedcollm.deploy import directories
from fedcollm.deploy.bases import slm_digests
from fedcollm.deploy.checks import check
from fedcollm.deploy.client import build_answering
from fedcollm.deploy.directories import Membership
from fedcollm.deploy.initialize import Choices, Site, initialize
from fedcollm.errors import UserError
from fedcollm.runs.build import build_federation
from fedcollm.runs.identity import base_digests, stored_digests

SITE, DEMO = Site("localhost"), Choices(demo=True)


# --- bases that are made once ---


def words(root: Path) -> tuple[dict[str, str], str]:
    """A public part and a test set of beeps of two classes; returns their format and the name of a network."""
    for number in range(8):
        soundfile.write(root / f"{number}.wav", np.sin(np.arange(1600) * (0.1 + 0.02 * number)), 16_000)
    for part, numbers in (("public", range(6)), ("test", (6, 7))):
        rows = "".join(f"{number}.wav,{'ab'[number % 2]}\n" for number in numbers)
        (root / f"{part}.csv").write_text("file,kind\n" + rows)
    return {"audio": "file", "answer": "kind"}, "ast-words"


def boxes(root: Path) -> tuple[dict[str, str], str]:
    content = json.loads((write_coco(root, images=8) / "train.json").read_text())
    (root / "train.json").unlink()
    for part, images in (("public", content["images"][:6]), ("test", content["images"][6:])):
        ids = [image["id"] for image in images]
        own = [box for box in content["annotations"] if box["image_id"] in ids]
        (root / f"{part}.json").write_text(json.dumps(content | {"images": images, "annotations": own}))
    return {"boxes": "coco"}, "cells-shapes"


@pytest.mark.parametrize("write", [words, boxes])
def test_base_that_is_pretrained_once_is_the_source_of_all_parties(tmp_path, write):
    (tmp_path / "data").mkdir()
    form, network = write(tmp_path / "data")
    model = {"dtype": "float32", "pretrain_epochs": 1, "adapter": {"rank": 2}}
    sizes = {"public_size": 6, "unlabelled_size": 0, "test_size": 2, "clients": 3}
    config = load_config("icd10", **{
        "task": {"name": "custom", "path": str(tmp_path / "data"), "format": form, **sizes},
        "llm": {"source": f"{network}-large", **model},
        "slm": {"source": f"{network}-small", "layers": None, "heal": None, **model},
        "federation.secure_aggregation.enabled": True, "server.layer_transfer": 0,
    })  # fmt: skip
    with pytest.raises(UserError, match=r"slm\.pretrain_epochs 1: .*fedcollm run CONFIG .*RUN/base/slm"):
        initialize(config, SITE, tmp_path / "out")
    made = build_federation(changed(config, {"federation.participants": []}), tmp_path / "base").server.pair.slm
    once = changed(config, {"slm.source": str(tmp_path / "base" / "slm"), "slm.pretrain_epochs": 0})
    initialize(once, SITE, tmp_path / "out", DEMO)
    place = tmp_path / "out" / "clients" / "0"
    data = tmp_path / "mine"
    shutil.copytree(tmp_path / "data", data)
    for public in data.glob("public.*"):
        public.rename(public.with_stem("train"))
    (place / "state").mkdir()
    member = build_answering(place, data).client
    own = inspect.getclosurevars(member.save).nonlocals["outcome"].slm
    weights = [dict(base_digests("slm", slm))["weights of slm in float32"] for slm in (made, own)]
    assert weights[0] == weights[1]


# --- digests ---


@pytest.fixture(scope="module")
def config(model_directories, word_data) -> RunConfig:
    return small_config(model_directories, word_data, **{"federation.secure_aggregation.enabled": True})


def test_digests_are_of_values_and_not_of_files(model_directories, tmp_path):
    source = Path(shutil.copytree(model_directories["slm"], tmp_path / "copy"))
    before = stored_digests(source)
    assert list(before) == ["configuration", "weights"]
    file = source / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[:1], "b.safetensors": names[1:]}
    for name, part in shards.items():
        save_file({key: tensors[key] for key in part}, source / name, metadata={"format": "pt", "by": name})
    index = {"weight_map": {key: name for name, part in shards.items() for key in part}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"other": torch.zeros(1)}, source / "consolidated.safetensors")
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(values | {"transformers_version": "0", "dtype": "float16"}))
    assert stored_digests(source) == before
    (source / "config.json").write_text(json.dumps(values | {"rope_theta": 5.0}))
    changed_shape = stored_digests(source)
    assert (changed_shape["weights"], changed_shape["configuration"] == before["configuration"]) == (
        before["weights"],
        False,
    )


@pytest.mark.parametrize("damage", ["weights", "no weights", "configuration"])
def test_damaged_base_is_named(model_directories, tmp_path, damage):
    source = Path(shutil.copytree(model_directories["slm"], tmp_path / "copy"))
    if damage == "configuration":
        (source / "config.json").write_text("[")
    elif damage == "weights":
        (source / "model.safetensors").write_bytes(b"x" * 20)
    else:
        (source / "model.safetensors").unlink()
    with pytest.raises(UserError, match="can't be read" if damage != "no weights" else "holds no weights"):
        stored_digests(source)


def test_client_with_another_slm_is_refused_with_one_message(config, model_directories, tmp_path):
    initialize(config, SITE, tmp_path / "out", DEMO)
    place = tmp_path / "out" / "clients" / "1"
    member = directories.read(place, directories.MEMBERSHIP, Membership)
    assert member.base == stored_digests(Path(model_directories["slm"]))
    own = Path(shutil.copytree(model_directories["slm"], tmp_path / "own"))
    tensors = load_file(own / "model.safetensors")
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] += 1e-3
    save_file(tensors, own / "model.safetensors", metadata={"format": "pt"})
    text = (place / "config.yaml").read_text()
    (place / "config.yaml").write_text(text.replace(str(model_directories["slm"]), str(own)))
    (place / "data.jsonl").write_text('{"text": "a", "kind": "animal"}\n')
    reason = rf"slm\.source: {own} is not the SLM that the operator has.*SHA-256 of the weights: \w{{16}} here"
    with pytest.raises(UserError, match=reason):
        build_answering(place, place / "data.jsonl")
    found = {finding.name: finding for finding in check(place, place / "data.jsonl")}
    assert "is not the SLM that the operator has" in found["data and model"].text
    (place / "config.yaml").write_text(text)
    found = {finding.name: finding for finding in check(place, place / "data.jsonl")}
    assert found["data and model"].text.endswith("and is the operator's SLM")


def test_random_slm_needs_no_digest(config):
    random = config.slm.model_copy(update={"source": "ast-words-small"})
    assert slm_digests(config.model_copy(update={"slm": random})) == {}
