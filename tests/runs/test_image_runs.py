"""Whole runs on image files: resumed, compared with controls, checked beforehand, and on real images."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import SHARED
from tests.modalities.vision.tiny_classifiers import save_classifier

from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.config.loading import load_config
from fedcollm.data.catalogue import load_pool
from fedcollm.data.partition import split
from fedcollm.runs import directory as run_directory
from fedcollm.runs.estimate import check
from fedcollm.runs.runner import evaluate_run, result, run

CELLS = SHARED / "blood_cells"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A table of 48 gray images of noise, bright on the left or on the right, each of one of two wards."""
    root, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    rows = ["file,kind,ward"]
    for number in range(48):
        right = number % 2
        values = generator.integers(0, 100, (9, 12))
        values[:, 6 * right : 6 * right + 6] += 140
        Image.fromarray(values.astype(np.uint8)).save(root / f"{number}.png")
        rows.append(f"{number}.png,{('left', 'right')[right]},{number % 3 % 2}")
    (root / "train.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root / "train.csv"


@pytest.fixture
def config(photos, tmp_path) -> RunConfig:
    """Two rounds of two wards with a MobileNetV2 and, at the server, a ViT that reads other pixels."""
    slm = save_classifier("mobilenet", tmp_path / "models" / "slm", seed=2)
    llm = save_classifier("vit", tmp_path / "models" / "llm", seed=1, image_std=[0.25, 0.25, 0.25])
    sizes = {"private_size": 8, "public_size": 8, "unlabelled_size": 0, "test_size": 12}
    columns = {"image": "file", "answer": "kind", "group": "ward"}
    model = {"dtype": "float32", "adapter": {"rank": 2}}
    values = {
        "name": "photos",
        "task": {"name": "custom", "path": str(photos), "format": columns, "clients": 2, **sizes},
        "llm": {"source": llm, **model},
        "slm": {"source": slm, "layers": None, "heal": None, **model},
        "client": {"learning_rate": 1e-2},
        "server": {"learning_rate": 1e-2, "unlabelled_per_round": None},
        "federation": {"rounds": 2},
    }
    return load_config("icd10", **values, **{"task.partition.kind": "natural"})


def test_resumed_run_equals_an_uninterrupted_one_and_predicts_as_it_was_scored(config, photos, tmp_path):
    run(config, tmp_path / "whole")
    run(changed(config, {"federation.rounds": 1}), tmp_path / "parts")
    run(config, tmp_path / "parts", resume=True)
    whole, parts = (run_directory.load_round(tmp_path / place) for place in ("whole", "parts"))
    assert whole is not None
    assert parts is not None
    for role in ("slm", "llm"):
        assert whole[1][role].keys() == parts[1][role].keys()
        assert all(torch.equal(whole[1][role][name], parts[1][role][name]) for name in whole[1][role])
    assert whole[0].scores == parts[0].scores
    assert evaluate_run(tmp_path / "whole", "slm").value == whole[0].scores["slm"]
    data = json.loads((tmp_path / "whole" / "data.json").read_text())
    assert any("images were converted to RGB" in note for note in data["notes"])
    test = split(load_pool(config.task, 0), config.task, 0).test
    for role in ("slm", "llm"):
        found = result(tmp_path / "whole").load(role).predict([{"file": e.source.name} for e in test], photos.parent)
        right = {example.id: float(one.text == example.label) for one, example in zip(found, test, strict=True)}
        assert right == evaluate_run(tmp_path / "whole", role).outcomes
        assert all(sum(one.probabilities.values()) == pytest.approx(1) for one in found)


def test_products_of_convolutions_are_averaged_at_their_clients_ranks(config, tmp_path):
    """ResNet's adapter is on convolutions of 3 x 3, with a rank of its own at each client."""
    resnet = save_classifier("resnet", tmp_path / "models" / "resnet", seed=3)
    changes = {"slm.source": resnet, "federation.aggregation": "product", "client.ranks": [1, 2]}
    run(changed(config, changes), tmp_path / "run")
    state = run_directory.load_round(tmp_path / "run")
    assert state is not None
    kernels = {tuple(tensor.shape[2:]) for name, tensor in state[1]["slm"].items() if "lora_A" in name}
    assert (3, 3) in kernels
    assert all(torch.isfinite(tensor).all() for tensor in state[1]["slm"].values())


def test_pixels_alone_tell_left_from_right(config, tmp_path):
    changes = {"control": {"features": "ngrams"}, "server.epochs": 0, "federation.rounds": 1}
    record = run(changed(config, changes), tmp_path / "run").records[-1]
    assert record.scores["control"] == 1.0


def test_check_counts_the_head_and_the_data(config):
    cost = check(config)
    slm, llm = cost.roles["slm"], cost.roles["llm"]
    # rank 2 on the layers of tiny ViT: 6 * 2 * (16 + 16), and a head of 16 * 2 + 2
    assert llm.adapter_parameters == 384 + 34
    assert slm.adapter_bytes == 4 * slm.adapter_parameters
    assert cost.data is not None


@pytest.mark.skipif(not CELLS.is_dir(), reason="the blood cells are not in ../shared/data")
def test_crops_of_blood_cells_are_classified(config, tmp_path):
    """White cells are purple and red ones pink: far above the most frequent class."""
    known = json.loads((CELLS / "test.json").read_text())
    names = {image["id"]: image["file_name"] for image in known["images"]}
    kinds = {kind["id"]: kind["name"] for kind in known["categories"]}
    counts = dict.fromkeys(kinds.values(), 0)
    with zipfile.ZipFile(CELLS / "images.zip") as archive:
        for box in known["annotations"]:
            kind, (x, y, width, height) = kinds[box["category_id"]], box["bbox"]
            if counts[kind] < 40 and min(width, height) > 4:
                counts[kind] += 1
                place = tmp_path / "cells" / "train" / kind / f"{box['id']}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                photo = Image.open(io.BytesIO(archive.read(names[box["image_id"]])))
                photo.crop((x, y, x + width, y + height)).save(place)
    none = dict.fromkeys(("image", "answer", "group"))
    sizes = {"task.private_size": 20, "task.public_size": 20, "task.test_size": 40}
    cells = {"task.path": tmp_path / "cells", "task.format": none, "task.partition.kind": "iid", **sizes}
    control = {"control": {"features": "ngrams"}, "server.epochs": 0, "federation.rounds": 1}
    solved = run(changed(config, cells | control), tmp_path / "control").records[-1]
    assert solved.scores["control"] > 0.6
    record = run(changed(config, cells), tmp_path / "run").records[-1]
    assert 0 < record.scores["slm"] <= 1
