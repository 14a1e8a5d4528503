"""Whole runs on the user's own recordings: over a network, resumed, checked beforehand, deployed and compared."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tests.modalities.audio.speech_models import ctc_directory, whisper_directory
from tests.transports.small_federation import Small, identical
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForPreTraining

from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.config.loading import load_config
from fedcollm.data.catalogue import build_client_modality, build_modality, load_pool
from fedcollm.data.partition import split
from fedcollm.deploy import directories
from fedcollm.deploy.client import build_answering, private_examples
from fedcollm.deploy.initialize import Choices, Site, initialize
from fedcollm.experiments.comparison import default_methods
from fedcollm.runs import directory as run_directory
from fedcollm.runs.estimate import check
from fedcollm.runs.runner import evaluate_run, result, run

KINDS = ("classes", "ctc", "whisper")
NOTES = {"a": 300, "b": 1_000, "c": 3_000}


@pytest.fixture(scope="module")
def notes(tmp_path_factory) -> Path:
    """A table of 48 clips of three notes, by three speakers, of whom one records at 8 kHz."""
    root, rows = tmp_path_factory.mktemp("notes"), ["file,note,speaker"]
    for number in range(48):
        note, rate = "abc"[number % 3], 8_000 if number % 16 == 1 else 16_000
        samples = 0.5 * np.sin(2 * np.pi * NOTES[note] * (1 + number / 200) * np.arange(rate // 5) / rate)
        soundfile.write(root / f"{number}.wav", samples, rate)
        rows.append(f"{number}.wav,{note},{number // 3 % 3}")
    (root / "train.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root / "train.csv"


def headless(place: Path, width: int) -> str:
    """A wav2vec2 without a head, as after pretraining."""
    torch.manual_seed(width)
    shape = Wav2Vec2Config(
        hidden_size=width, num_hidden_layers=1, num_attention_heads=2, intermediate_size=width, conv_dim=[8, 8],
        conv_kernel=[16, 40], conv_stride=[8, 40], num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, codevector_dim=8, proj_codevector_dim=8, num_codevectors_per_group=4,
        classifier_proj_size=8,
    )  # fmt: skip
    Wav2Vec2ForPreTraining(shape).save_pretrained(place)
    Wav2Vec2FeatureExtractor().save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, dict[str, str]]:
    place = tmp_path_factory.mktemp("models")
    make = {"classes": headless, "ctc": ctc_directory, "whisper": whisper_directory}
    return {kind: {role: make[kind](place / f"{kind}-{role}", width) for role, width in (("slm", 16), ("llm", 24))}
            for kind in KINDS}  # fmt: skip


def config_of(kind: str, models: dict[str, dict[str, str]], notes: Path, secure: bool = False) -> RunConfig:
    """Two rounds of three speakers. All but the data and the two sources has its default value."""
    form = {"audio": "file", "answer" if kind == "classes" else "transcript": "note", "group": "speaker"}
    sizes = {"clients": 3, "private_size": 4, "public_size": 6, "unlabelled_size": 3, "test_size": 6}
    values = {
        "name": "notes",
        "task": {"name": "custom", "path": str(notes), "format": {**form, "longest_seconds": 1}, **sizes},
        **{role: {"source": source, "dtype": "float32"} for role, source in models[kind].items()},
        "client": {"learning_rate": 1e-2, "batch_size": 4},
        "server": {"learning_rate": 1e-2, "batch_size": 4, "unlabelled_per_round": None},
        "federation": {"rounds": 2, "secure_aggregation": {"enabled": secure}},
    }
    return load_config(values, **{"task.partition.kind": "natural"})


def state(place: Path):
    loaded = run_directory.load_round(place)
    assert loaded is not None
    return loaded


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "secure"])
@pytest.mark.parametrize("kind", KINDS)
def test_run_equals_the_one_over_a_network_bit_for_bit(models, notes, tmp_path, monkeypatch, kind, secure):
    config = changed(config_of(kind, models, notes, secure), {"federation.rounds": 1})

    def modality():
        return build_modality(config.task, config.slm, config.llm, False)

    records = Small(config, tmp_path / "disk", monkeypatch, modality, load_pool(config.task, 0)).run(tmp_path / "net")
    run(config, tmp_path / "local")
    here, there = state(tmp_path / "net"), state(tmp_path / "local")
    assert records[-1].participants == ("0", "1", "2")
    assert all(identical(here[1][role], there[1][role]) for role in ("slm", "llm"))
    assert here[0].scores == there[0].scores
    travels = {name.split(".")[-2] for name in there[1]["slm"] if "lora" not in name}
    assert travels == ({"projector", "classifier"} if kind == "classes" else set())


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_run_equals_an_uninterrupted_one_and_predicts_as_it_was_scored(models, notes, tmp_path, kind):
    config = config_of(kind, models, notes)
    run(config, tmp_path / "whole")
    run(changed(config, {"federation.rounds": 1}), tmp_path / "parts")
    run(config, tmp_path / "parts", resume=True)
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert all(identical(whole[1][role], parts[1][role]) for role in ("slm", "llm"))
    assert whole[0].scores == parts[0].scores
    assert evaluate_run(tmp_path / "whole", "slm").value == whole[0].scores["slm"]
    said = (tmp_path / "whole" / "data.json").read_text(encoding="utf-8")
    assert "recordings with another sampling rate: they are resampled to 16000 Hz: " in said
    test = split(load_pool(config.task, 0), config.task, 0).test
    rows = [{"file": example.recording.source.name} for example in test]
    for role in ("slm", "llm"):
        model = result(tmp_path / "whole").load(role)
        found = model.predict(rows, notes.parent)
        if kind == "classes":
            right = [float(one.text == example.label) for one, example in zip(found, test, strict=True)]
            assert right == [evaluate_run(tmp_path / "whole", role).outcomes[example.id] for example in test]
        else:
            with torch.inference_mode():
                assert [one.text for one in found] == model.modality.hear(model.model, test)
            assert all(one.probabilities == {} for one in found)


@pytest.mark.parametrize("kind", KINDS)
def test_check_counts_adapter_and_head(models, notes, kind):
    config = config_of(kind, models, notes)
    cost = check(config)
    layers = 8 * 6 * 32  # rank 8 on six linear layers of width 16
    heads = 16 * 8 + 8 + 8 * 3 + 3
    whisper = 8 * 16 * 32  # on six of the encoder and ten of the decoder
    expected = {"classes": layers + heads, "ctc": layers, "whisper": whisper}
    assert cost.roles["slm"].adapter_parameters == expected[kind]
    assert cost.data is not None


@pytest.mark.parametrize("kind", KINDS)
def test_compare_has_controls_for_classes_only(models, notes, kind):
    methods = default_methods([config_of(kind, models, notes)])
    assert ("closed_form" in methods) is ("majority" in methods) is (kind == "classes")
    assert "fedcollm" in methods


def test_loudness_alone_tells_notes_apart(models, notes, tmp_path):
    changes = {"control": {"features": "ngrams"}, "server.epochs": 0, "federation.rounds": 1}
    record = run(changed(config_of("classes", models, notes), changes), tmp_path / "run").records[-1]
    assert record.scores["control"] == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_deployed_client_reads_its_own_recordings(models, notes, tmp_path, kind):
    config = config_of(kind, models, notes, secure=True)
    initialize(config, Site("localhost"), tmp_path / "out", Choices(demo=True))
    place = tmp_path / "out" / "clients" / "1"
    membership = directories.read(place, directories.MEMBERSHIP, directories.Membership)
    own = directories.read_config(place)
    modality = build_client_modality(own.task, own.slm, membership.facts)
    server = build_modality(config.task, config.slm, config.llm, False).of("slm")
    assert modality.options == server.options
    train, test = private_examples(own, modality, notes)
    assert ([example.label for example in train[:3]], test) == (["a", "b", "c"], [])
    assert build_answering(place, notes).id == "1"
