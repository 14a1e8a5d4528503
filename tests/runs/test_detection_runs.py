"""Whole runs of detection: resumed, scored again, and checked beforehand."""

import json

import pytest
import torch
from tests.modalities.vision.tiny_detectors import save_detector, write_coco

from fedcollm.config import ClientConfig, RunConfig
from fedcollm.config.baselines import changed
from fedcollm.config.loading import load_config
from fedcollm.data.catalogue import load_pool
from fedcollm.data.partition import split
from fedcollm.data.sources import shapes
from fedcollm.errors import UserError
from fedcollm.runs import build_models
from fedcollm.runs import directory as run_directory
from fedcollm.runs.estimate import check
from fedcollm.runs.runner import evaluate_run, result, run


@pytest.fixture(scope="module")
def wards(tmp_path_factory):
    """Images of three wards in the format of COCO, in each of which a box reaches outside and one has no area."""
    root = write_coco(tmp_path_factory.mktemp("wards"))
    content = json.loads((root / "train.json").read_text())
    for image in range(24):
        content["annotations"] += [
            {"image_id": image, "category_id": 7, "bbox": [30, 20, 9, 9]},
            {"image_id": image, "category_id": 7, "bbox": [3, 3, 4, 0]},
        ]
    (root / "train.json").write_text(json.dumps(content), encoding="utf-8")
    return root


@pytest.fixture
def config(wards, tmp_path) -> RunConfig:
    """Two rounds of three wards with a YOLOS and, at the server, a DETR that reads larger images."""
    slm = save_detector("yolos", tmp_path / "models" / "slm", queries=3, seed=2)
    llm = save_detector("detr", tmp_path / "models" / "llm", queries=5, seed=1, size={"height": 40, "width": 48})
    sizes = {"private_size": 4, "public_size": 4, "unlabelled_size": 2, "test_size": 6}
    model = {"dtype": "float32", "adapter": {"rank": 2}}
    values = {
        "name": "wards",
        "task": {"name": "custom", "path": str(wards), "format": {"boxes": "coco"}, "clients": 3, **sizes},
        "llm": {"source": llm, **model},
        "slm": {"source": slm, "layers": None, "heal": None, **model},
        "client": {"learning_rate": 1e-2, "batch_size": 2},
        "server": {"learning_rate": 1e-2, "batch_size": 3, "unlabelled_per_round": None},
        "federation": {"rounds": 2},
    }
    return load_config("icd10", **values, **{"task.partition.kind": "natural"})


def test_resumed_run_equals_an_uninterrupted_one_and_detects_as_it_was_scored(config, wards, tmp_path):
    run(config, tmp_path / "whole")
    run(changed(config, {"federation.rounds": 1}), tmp_path / "parts")
    run(config, tmp_path / "parts", resume=True)
    whole, parts = (run_directory.load_round(tmp_path / place) for place in ("whole", "parts"))
    assert whole is not None
    assert parts is not None
    for role in ("slm", "llm"):
        assert whole[1][role].keys() == parts[1][role].keys()
        assert all(torch.equal(whole[1][role][name], parts[1][role][name]) for name in whole[1][role])
        assert any("bbox_predictor" in name for name in whole[1][role])
    assert whole[0].scores == parts[0].scores
    again = evaluate_run(tmp_path / "whole", "slm")
    assert again.value == whole[0].scores["slm"]
    assert set(again.sums) == {"ap50", "map50", "map"}
    outcomes = json.loads((tmp_path / "whole" / "outcomes.json").read_text())
    assert len(outcomes["slm"]) == len(outcomes["llm"]) == 6
    notes = json.loads((tmp_path / "whole" / "data.json").read_text())["notes"]
    assert {note.split(maxsplit=1)[1] for note in notes if "boxes" in note} == {
        "boxes reach outside of their image and were clipped",
        "boxes have no area and were dropped",
    }
    test = split(load_pool(config.task, 0), config.task, 0).test
    model = result(tmp_path / "whole").load("llm")
    found = model.predict([{"image": example.source.relative_to(wards).as_posix()} for example in test], wards)
    shown = model.modality.answers(model.model, test)
    assert [len(one.objects) for one in found] == [len(one.regions) for one in shown]
    assert [one.text for one in found] == [one.text for one in shown]


def test_shipped_detectors_are_pretrained_with_a_schedule_and_resumed(tmp_path, monkeypatch):
    sizes = {"private_size": 4, "public_size": 8, "unlabelled_size": 2, "test_size": 4}
    known = {f"{role}.pretrain_epochs": 1 for role in ("slm", "llm")}
    values = {**{f"task.{name}": size for name, size in sizes.items()}, **known, "federation.rounds": 2}
    config = load_config("shapes", **values)
    for name, size in {"PUBLIC": 20, "TRAIN": 8, "TEST": 4}.items():
        monkeypatch.setattr(shapes, name, size)  # drawing all scenes takes seconds
    seen = list[ClientConfig]()
    fit = build_models.fit
    monkeypatch.setattr(build_models, "fit", lambda *given: seen.append(given[3]) or fit(*given))
    run(config, tmp_path / "whole")
    assert [(one.schedule, one.warmup_ratio, one.max_grad_norm, one.batch_size) for one in seen] == [
        ("linear", 0.1, 1.0, 16)
    ] * 2
    run(changed(config, {"federation.rounds": 1}), tmp_path / "parts")
    run(config, tmp_path / "parts", resume=True)
    assert len(seen) == 4  # the resumed run read its base
    whole, parts = (run_directory.load_round(tmp_path / place) for place in ("whole", "parts"))
    assert whole is not None
    assert parts is not None
    assert whole[0].scores == parts[0].scores
    for role in ("slm", "llm"):
        assert all(torch.equal(whole[1][role][name], parts[1][role][name]) for name in whole[1][role])
    assert evaluate_run(tmp_path / "parts", "llm").value == whole[0].scores["llm"]


def test_check_counts_heads_and_data(config):
    cost = check(config)
    # YOLOS, rank 2 on six layers of 16 x 16: 6 * 2 * 32; class head 2 * (16 * 16 + 16) + 16 * 3 + 3; box head
    # 2 * (16 * 16 + 16) + 16 * 4 + 4
    assert cost.roles["slm"].adapter_parameters == 384 + 595 + 612
    assert cost.data is not None


def test_single_examples_can_not_be_hidden(config, tmp_path):
    privacy = {"level": "example", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5, "sampling_rate": 0.1}
    hidden = changed(
        config, {"federation.privacy": privacy, "federation.aggregation": "uniform", "client.max_grad_norm": None}
    )
    with pytest.raises(UserError, match="loss of its own"):
        run(hidden, tmp_path / "run")
