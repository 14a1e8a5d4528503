"""Federations of tiny detectors: over a network in memory and in one process, bit for bit, plain and secure."""

import pytest
from tests.modalities.vision.tiny_detectors import save_detector, write_coco
from tests.transports.flower.test_transport_images import SmallOfImages
from tests.transports.small_federation import identical, last

from fedcollm.config.loading import load_config
from fedcollm.runs.runner import run


@pytest.mark.parametrize(("family", "secure"), [("yolos", False), ("detr", False), ("yolos", True)])
def test_run_over_a_network_equals_the_one_in_this_process(family, secure, tmp_path, monkeypatch):
    data = write_coco(tmp_path / "data")
    model = {"dtype": "float32", "adapter": {"rank": 2}}
    sizes = {"private_size": 4, "public_size": 4, "unlabelled_size": 2, "test_size": 6}
    slm = save_detector(family, tmp_path / "slm", queries=3, seed=2)
    llm = save_detector("yolos", tmp_path / "llm", queries=5, seed=1, image_mean=[0.4, 0.4, 0.4])
    values = {
        "name": "wards",
        "task": {"name": "custom", "path": str(data), "format": {"boxes": "coco"}, "clients": 3, **sizes},
        "llm": {"source": llm, **model},
        "slm": {"source": slm, "layers": None, "heal": None, **model},
        "client": {"learning_rate": 1e-2, "batch_size": 2},
        "server": {"learning_rate": 1e-2, "batch_size": 3, "unlabelled_per_round": None},
        "federation": {"rounds": 1},
    }
    changes = {"task.partition.kind": "natural", "federation.secure_aggregation.enabled": secure}
    config = load_config("icd10", **values, **changes)
    small = SmallOfImages(config, tmp_path / "disk", monkeypatch)
    (record,) = small.run(tmp_path / "network")[-1:]
    run(config, tmp_path / "local")
    (here, theta), (there, other) = last(tmp_path / "network"), last(tmp_path / "local")
    assert identical(theta, other)
    assert here.scores == there.scores == record.scores
    assert any("bbox_predictor" in key and "lora" not in key for key in theta)
