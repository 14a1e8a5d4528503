"""Runs that train nothing: what is written, what it equals, and what it can be combined with."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.feature_extraction.text import HashingVectorizer

import fedcollm
from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.config.loading import load_config
from fedcollm.config.methods import METHODS
from fedcollm.data.catalogue import load_pool
from fedcollm.data.partition import split
from fedcollm.data.pool import Pool
from fedcollm.errors import UserError
from fedcollm.federation.client import Client
from fedcollm.modalities.text.examples import TextExample
from fedcollm.runs import build_models, controls, profile
from fedcollm.runs import directory as directories
from fedcollm.runs.estimate import check
from fedcollm.runs.runner import evaluate_run, rounds

COLUMNS = 64
SECURE = {"federation.secure_aggregation.enabled": True, "task.clients": 3}


def control(config: RunConfig, features: str = "ngrams", **values: Any) -> RunConfig:
    section = {"features": features, "columns": COLUMNS}
    return changed(config, {"control": section, "server.epochs": 0, "federation.rounds": 1} | values)


def outcomes(directory: Path) -> dict[str, float]:
    return directories.read_json(directory, directories.OUTCOMES)["control"]


def test_record_has_the_accuracy_and_what_travelled(tiny_config, tmp_path):
    result = fedcollm.run(control(tiny_config), tmp_path)
    first, last = result.records
    assert (first.round, first.scores, first.bytes_up) == (0, {}, 0)
    assert (last.round, last.participants, last.lost, last.losses, last.epsilon) == (1, ("0", "1"), {}, {}, None)
    assert last.bytes_up == last.bytes_down == 4 * (COLUMNS * (COLUMNS + 1) // 2 + 2 * COLUMNS)
    assert last.seconds.keys() == {"clients", "evaluation"}
    found = outcomes(tmp_path)
    assert len(found) == 48
    assert last.scores == {"control": sum(found.values()) / 48}
    assert last.scores["control"] > 0.9  # n-grams of the words suffice
    confusion = directories.read_json(tmp_path, directories.CONFUSION)["control"]
    assert sum(count for _, _, count in confusion) == 48
    assert sum(count for true, predicted, count in confusion if true == predicted) == sum(found.values())
    assert result.adapters == {}


def test_solution_is_that_of_all_labelled_examples_together(tiny_config, tmp_path):
    config = control(tiny_config, **{"task.unlabelled_size": 16, "control.ridge": 0.5})
    fedcollm.run(config, tmp_path)
    data = split(load_pool(config.task, config.seed), config.task, config.seed)
    labelled = [e for part in data.private.values() for e in part] + [e for e in data.public if e.label]
    assert len(labelled) == 2 * 40 + 96
    hashing = HashingVectorizer(n_features=COLUMNS, analyzer="char_wb", ngram_range=(3, 5))
    x = np.asarray(hashing.transform([e.prompt for e in labelled]).todense())
    y = np.array([[1.0, -1.0] if e.answer == 0 else [-1.0, 1.0] for e in labelled])
    expected = np.linalg.solve(x.T @ x + 0.5 * np.eye(COLUMNS), x.T @ y)
    weights = load_file(tmp_path / directories.CHECKPOINT)["control/weights"]
    assert np.allclose(weights.numpy(), expected, atol=1e-5)


def test_secure_aggregation_changes_no_prediction(tiny_config, tmp_path):
    plain = control(tiny_config, **{"task.clients": 3})
    fedcollm.run(plain, tmp_path / "plain")
    record = fedcollm.run(changed(plain, SECURE), tmp_path / "secure").records[-1]
    assert outcomes(tmp_path / "secure") == outcomes(tmp_path / "plain")
    assert record.participants == ("0", "1", "2")
    assert record.bytes_up > 4 * (COLUMNS * (COLUMNS + 1) // 2 + 2 * COLUMNS)


def test_most_frequent_label_is_that_of_all_labelled_examples(tiny_config, tmp_path):
    config = control(tiny_config, "constant")
    fedcollm.run(config, tmp_path)
    data = split(load_pool(config.task, config.seed), config.task, config.seed)
    labels = [e.label for part in (*data.private.values(), data.public) for e in part]
    most = max(("colour", "animal"), key=labels.count)
    assert outcomes(tmp_path) == {e.id: float(e.label == most) for e in data.test}


def test_public_examples_alone_are_enough(tiny_config, tmp_path):
    (config,) = METHODS["closed_form_public"].configure(tiny_config).values()
    record = fedcollm.run(config, tmp_path).records[-1]
    assert (record.participants, record.bytes_up, record.bytes_down) == ((), 0, 0)
    assert record.scores["control"] > 0.8


def test_clients_alone_are_enough(tiny_config, tmp_path):
    record = fedcollm.run(control(tiny_config, **{"task.public_size": 0}), tmp_path).records[-1]
    assert record.scores["control"] > 0.8


@pytest.mark.parametrize(("features", "loaded"), [("constant", []), ("ngrams", []), ("slm", ["slm"])])
def test_no_model_is_loaded_that_is_not_needed(tiny_config, tmp_path, monkeypatch, features, loaded):
    roles, build = [], build_models.build_model
    monkeypatch.setattr(build_models, "build_model", lambda *a: roles.append(a[1]) or build(*a))
    fedcollm.run(control(tiny_config, features), tmp_path)
    assert roles == loaded
    parameters = directories.read_json(tmp_path, directories.ENVIRONMENT)["parameters"]
    assert list(parameters) == loaded


def test_hidden_states_of_the_slm_are_features(tiny_config, tmp_path):
    record = fedcollm.run(control(tiny_config, "slm"), tmp_path).records[-1]
    assert record.bytes_up == 4 * (16 * 17 // 2 + 2 * 16)  # 16 units, two labels
    assert record.scores["control"] > 0.8


# --- resuming ---


def untimed(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / directories.ROUNDS).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "peak_memory_bytes")} for line in lines]


def test_interrupted_run_is_resumed_with_the_same_bits(tiny_config, tmp_path):
    config = control(tiny_config)
    fedcollm.run(config, tmp_path / "whole")
    interrupted = rounds(config, tmp_path / "parts")
    assert next(interrupted).round == 0
    interrupted.close()
    assert [record.round for record in rounds(None, tmp_path / "parts", resume=True)] == [0, 1]
    one, two = (load_file(tmp_path / name / directories.CHECKPOINT) for name in ("whole", "parts"))
    assert torch.equal(one["control/weights"], two["control/weights"])
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")
    assert outcomes(tmp_path / "whole") == outcomes(tmp_path / "parts")


def test_finished_run_asks_nobody_again_and_finds_lost_outcomes(tiny_config, tmp_path, monkeypatch):
    fedcollm.run(control(tiny_config), tmp_path)
    before, files = outcomes(tmp_path), [tmp_path / directories.OUTCOMES, tmp_path / directories.CONFUSION]
    files[0].unlink()
    monkeypatch.setattr(Client, "train", lambda *a: pytest.fail("a client was asked again"))
    assert [record.round for record in rounds(None, tmp_path, resume=True)] == [0, 1]
    assert outcomes(tmp_path) == before
    assert [record.round for record in rounds(control(tiny_config), tmp_path, resume=True)] == [0, 1]


# --- tasks ---


def own_choices(tmp_path: Path, config: RunConfig) -> RunConfig:
    """Which of two words is a colour? The right one stands at either place, but more often at the second."""
    pairs = [(c, a, i) for i in range(30) for c in ("red", "green", "blue") for a in ("cat", "dog", "bird")]
    rows = [
        {"text": f"the number {i} of {c} {a}", "words": [c, a] if i % 3 == 0 else [a, c], "kind": c}
        for c, a, i in pairs
    ]
    file = tmp_path / "choices.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    form = {"prompt": "{text}:", "answer": "kind", "choices": "words", "group": None}
    return changed(config, {"task.path": file, "task.format": form})


@pytest.mark.parametrize(("features", "accuracy"), [("ngrams", 1.0), ("constant", 2 / 3), ("slm", 1.0)])
def test_choices_of_an_examples_own_are_told_apart_by_their_own_rows(tiny_config, tmp_path, features, accuracy):
    record = fedcollm.run(control(own_choices(tmp_path, tiny_config), features), tmp_path / "run").records[-1]
    assert record.scores["control"] == pytest.approx(accuracy, abs=0.15)
    assert directories.read_json(tmp_path / "run", directories.CONFUSION) == {"control": []}


@pytest.mark.parametrize(("features", "least"), [("ngrams", 0.8), ("slm", 0.4), ("constant", 0.05)])
def test_images_have_controls_too(tmp_path, features, least):
    sizes = {"private_size": 100, "public_size": 300, "test_size": 100}
    config = load_config("digits", **{f"task.{name}": size for name, size in sizes.items()})
    config = control(config, features, **{"control.ridge": 0.01})
    record = fedcollm.run(config, tmp_path / "run").records[-1]
    assert least < record.scores["control"] < 1
    if features == "ngrams":
        assert record.bytes_up == 4 * (64 * 65 // 2 + 64 * 10)  # 8 x 8 pixels, ten classes


def test_free_answers_have_no_control(tiny_config, tmp_path):
    pool = Pool([TextExample(str(i), f"{i} is a", (f"{i % 2}",), 0, (f"{i % 2}",)) for i in range(300)])
    with pytest.raises(UserError, match="free answer"):
        fedcollm.run(control(tiny_config), tmp_path / "run", pool=pool)


# --- privacy, hostile clients ---


def test_client_level_privacy_is_spent_once_and_its_noise_is_felt(tiny_config, tmp_path):
    privacy = {"level": "client", "clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-5}
    private = SECURE | {"federation.aggregation": "uniform", "federation.privacy": privacy}
    config = control(tiny_config, **private)
    first, last = fedcollm.run(config, tmp_path).records
    assert first.epsilon == 0.0
    assert last.epsilon is not None
    assert 0 < last.epsilon < math.inf
    assert directories.read_json(tmp_path, directories.STARTED) == {"rounds": 1}
    other = changed(config, {"name": "other"})
    fedcollm.run(other, tmp_path / "other")
    one, two = (
        load_file(place / directories.CHECKPOINT)["control/weights"] for place in (tmp_path, tmp_path / "other")
    )
    assert not torch.allclose(one, two)


def test_statistics_that_no_honest_client_can_have_are_refused(tiny_config, tmp_path, monkeypatch):
    moments = controls.statistics.moments

    def large(modality: Any, examples: Sequence[Any], *rest: Any) -> Any:
        factor = 20.0 if len(examples) == 40 else 1.0  # a client's
        return {name: tensor * factor for name, tensor in moments(modality, examples, *rest).items()}

    monkeypatch.setattr(controls.statistics, "moments", large)
    with pytest.raises(UserError, match=r"client 0: XᵀX has a trace of 20, .* client 1: XᵀX has a trace of 20"):
        fedcollm.run(control(tiny_config), tmp_path)
    secure = {"federation.secure_aggregation.enabled": True, "federation.secure_aggregation.value_range": 32.0}
    with pytest.raises(UserError, match=r"in the mean .* trace of 20, .* one of the clients is faulty"):
        fedcollm.run(control(tiny_config, **secure, **{"task.clients": 3}), tmp_path / "secure")


# --- evaluation ---


@pytest.mark.parametrize("role", ["slm", "control"])
def test_a_run_that_trained_nothing_has_nothing_to_evaluate(tiny_config, tmp_path, role):
    fedcollm.run(control(tiny_config), tmp_path)
    with pytest.raises(UserError, match=r"trained nothing.*rounds\.jsonl.*fedcollm report"):
        evaluate_run(tmp_path, role)


# --- estimates ---


def test_check_tells_the_bytes_of_the_statistics(tiny_config):
    size = 4 * (COLUMNS * (COLUMNS + 1) // 2 + 2 * COLUMNS)
    slm = check(control(tiny_config)).roles["slm"]
    assert (slm.adapter_bytes, slm.upload_bytes) == (size, size)
    hidden = check(control(tiny_config, "slm")).roles["slm"]
    assert hidden.upload_bytes == 4 * (16 * 17 // 2 + 2 * 16)
    (public,) = METHODS["closed_form_public"].configure(tiny_config).values()
    assert check(public).roles["slm"].upload_bytes == 0


def test_check_tells_what_pseudo_labels_send_once(tiny_config):
    labels = {"server.pseudo_labels": {"columns": COLUMNS}, "task.unlabelled_size": 48, "task.public_size": 32}
    cost, plain = check(changed(tiny_config, labels)), check(tiny_config)
    assert (cost.statistics_bytes, plain.statistics_bytes) == (4 * (COLUMNS * (COLUMNS + 1) // 2 + 2 * COLUMNS), 0)
    assert cost.roles["slm"].upload_bytes == plain.roles["slm"].upload_bytes
    assert check(control(tiny_config)).statistics_bytes == 0


def test_check_counts_the_memory_of_the_regression(tiny_config):
    one, other = (changed(control(tiny_config), {"control.columns": columns}) for columns in (8000, 16000))
    assert check(other).memory_bytes - check(one).memory_bytes == 40 * (16000**2 - 8000**2)
    labels = {"server.pseudo_labels": {"columns": 8000}, "task.unlabelled_size": 48, "task.public_size": 32}
    assert check(changed(tiny_config, labels)).memory_bytes > 40 * 8000**2


def test_nothing_is_measured_where_nothing_is_trained(tiny_config):
    with pytest.raises(UserError, match="trains nothing"):
        profile.measure(control(tiny_config))
