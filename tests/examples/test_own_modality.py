"""The example of an own modality: a CTC task goes through runs, comparisons and resuming like any other."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fedcollm
from fedcollm.config.baselines import changed
from fedcollm.config.methods import CONTROLS, PAPER
from fedcollm.errors import UserError

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_modality.py"
SMALL = {
    "llm.pretrain_epochs": 2,
    "slm.pretrain_epochs": 2,
    "client.epochs": 1,
    "server.epochs": 1,
    "federation.rounds": 1,
    "task.private_size": 12,
    "task.public_size": 12,
    "task.unlabelled_size": 6,
    "task.test_size": 12,
}


@pytest.fixture(scope="module")
def tones():
    spec = importlib.util.spec_from_file_location("own_modality", EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["own_modality"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["own_modality"]


@pytest.fixture
def config(tones):
    return changed(fedcollm.load_config(tones.CONFIG), SMALL)


@pytest.fixture(scope="module")
def pool(tones):
    return fedcollm.Pool(train=tones.make_tunes(120, clients=3))


def test_every_baseline_and_control_runs(tones, config, pool, tmp_path):
    table = fedcollm.compare(config, tmp_path, inputs=fedcollm.Inputs(tones.Tones(), pool))
    without_features = [name for name in PAPER if name not in CONTROLS]  # Tones has no `evidence`
    assert [row.method for row in table.rows] == ["", *without_features]
    scored = {row.method: set(row.values) for row in table.rows}
    assert scored["fedcollm"] == {"slm", "clients", "llm"}
    assert (tmp_path / "fedcollm" / "seed-0" / "adapters" / "slm" / "adapter_model.safetensors").exists()


def test_slm_learns_what_the_clients_hear(tones, tmp_path):
    pool = fedcollm.Pool(train=tones.make_tunes(400, clients=3))
    config = fedcollm.load_config(tones.CONFIG)
    first, *_, last = fedcollm.run(config, tmp_path / "run", modality=tones.Tones(), pool=pool).records
    assert last.scores["slm"] > first.scores["slm"]
    assert last.losses["slm"] > 0


def test_resumed_run_equals_an_uninterrupted_one(tones, config, pool, tmp_path):
    more = changed(config, {"federation.rounds": 2})
    given = {"modality": tones.Tones(), "pool": pool}
    fedcollm.run(more, tmp_path / "whole", **given)
    fedcollm.run(config, tmp_path / "parts", **given)
    fedcollm.run(more, tmp_path / "parts", resume=True, **given)
    one, two = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_secure_aggregation_sums_adapters_of_any_network(tones, config, pool, tmp_path):
    secure = changed(config, {"federation.secure_aggregation": True})
    record = fedcollm.run(secure, tmp_path / "secure", modality=tones.Tones(), pool=pool).records[-1]
    assert record.participants == ("0", "1", "2")


def test_gradients_of_single_examples_need_a_loss_by_rows(tones, config, pool, tmp_path):
    privacy = {"level": "example", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-3, "sampling_rate": 0.5}
    private = changed(config, {"federation.privacy": privacy, "federation.aggregation": "uniform"})
    with pytest.raises(UserError, match=r"federation\.privacy"):
        fedcollm.run(private, tmp_path / "private", modality=tones.Tones(), pool=pool)


def test_control_needs_features_of_the_modality(tones, config, pool, tmp_path):
    given = fedcollm.Inputs(tones.Tones(), pool)
    with pytest.raises(UserError, match=r"control needs Tones\.evidence"):
        fedcollm.compare(config, tmp_path, methods=["majority"], inputs=given)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "server.pseudo_labels needs Tones.evidence, Tones.probabilities, Tune.with_answer, "),
        ({"teachers": ["regression"]}, "server.pseudo_labels needs Tones.evidence, Tune.with_answer, "),
        (
            {"teachers": ["llm"], "features": "constant"},
            "server.pseudo_labels needs Tones.probabilities, Tune.with_answer, ",
        ),
    ],
)
def test_pseudo_labels_say_all_that_the_modality_lacks_before_a_model_is_loaded(
    tones, config, pool, tmp_path, monkeypatch, labels, message
):
    monkeypatch.setattr(tones.Tones, "load_model", None)
    labelled = changed(config, {"server.pseudo_labels": labels, "task.unlabelled_size": 8})
    with pytest.raises(UserError, match=f"^{message}.*server.pseudo_labels: null"):
        fedcollm.run(labelled, tmp_path / "run", modality=tones.Tones(), pool=pool)


def test_own_modality_is_not_for_other_processes(tones, config, pool, tmp_path):
    with pytest.raises(UserError, match="jobs"):
        fedcollm.compare(config, tmp_path, jobs=2, inputs=fedcollm.Inputs(tones.Tones(), pool))
