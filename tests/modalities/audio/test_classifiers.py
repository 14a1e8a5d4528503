"""Audio classifiers of two architectures, their heads and adapters."""

from pathlib import Path

import pytest
import torch
from tests.modalities.audio.clips import tone
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForPreTraining,
    Wav2Vec2ForSequenceClassification,
)

from fedcollm.config import AdapterConfig, ModelConfig, StatisticsConfig
from fedcollm.errors import UserError
from fedcollm.modalities.audio.classification import AudioExample
from fedcollm.modalities.audio.classifiers import AudioClassifiers
from fedcollm.modalities.audio.files import AudioFileTask, audio_task_for_client
from fedcollm.models.adapters import load_adapter, read_adapter, save_adapter
from fedcollm.runs.build_models import adapted

CPU = torch.device("cpu")
THREE = AudioClassifiers(("a", "b", "c"))
WAVES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "conv_dim": [8, 8],
    "conv_kernel": [10, 8], "conv_stride": [8, 8], "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8, "layerdrop": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    root: Path = tmp_path_factory.mktemp("sounds")
    torch.manual_seed(0)
    spectra = ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_mel_bins=16,
        max_length=32, num_labels=3,
    )  # fmt: skip
    ASTForAudioClassification(spectra).save_pretrained(root / "ast")
    ASTFeatureExtractor(num_mel_bins=16, max_length=32).save_pretrained(root / "ast")
    Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**WAVES, num_labels=5)).save_pretrained(root / "five")
    Wav2Vec2ForPreTraining(
        Wav2Vec2Config(**WAVES, codevector_dim=8, proj_codevector_dim=8, num_codevectors_per_group=4)
    ).save_pretrained(root / "base")
    for name in ("five", "base"):
        Wav2Vec2FeatureExtractor().save_pretrained(root / name)
    return {name: str(root / name) for name in ("ast", "five", "base")}


def section(source: str) -> ModelConfig:
    return ModelConfig(source=source, dtype="float32", adapter=AdapterConfig(rank=2))


def loaded(source: str, seed: int = 1):
    return THREE.load_model(section(source), "slm", CPU, seed).eval()


@pytest.mark.parametrize(
    ("name", "fresh"),
    [("ast", []), ("five", ["classifier"]), ("base", ["projector", "classifier"]), ("ast-words-small", [])],
)
def test_heads_that_do_not_fit_are_fresh_and_travel(places, tmp_path, name, fresh):
    source = places.get(name, name)
    model = loaded(source)
    assert sorted(THREE.trained_modules(model)) == sorted(fresh)
    assert model.config.num_labels == 3
    assert THREE.is_pretrained(section(source)) is (name == "ast")
    outline = THREE.outline(section(source))
    assert sorted(THREE.trained_modules(outline)) == sorted(fresh)
    tuned = adapted(model, AdapterConfig(rank=2), THREE)
    names = {key for key in read_adapter(tuned) if "lora" not in key}
    assert {key.split(".")[-2] for key in names} == set(fresh)
    assert not any(head in layer for layer in THREE.adapted_layers(model) for head in ("conv", "classifier", *fresh))
    values = {key: tensor + 0.1 for key, tensor in read_adapter(tuned).items()}
    save_adapter(tuned, values, tmp_path / "adapter")
    again = adapted(loaded(source, seed=2 if fresh else 1), AdapterConfig(rank=2), THREE)
    load_adapter(again, tmp_path / "adapter")
    assert all(torch.equal(values[key], tensor) for key, tensor in read_adapter(again).items())


def test_layers_are_not_left_out_at_random(places):
    assert loaded(places["five"]).config.layerdrop == 0
    assert loaded(places["five"]).config.apply_spec_augment is False


def test_pair_reads_the_same_clips_and_a_client_is_told_how_long(places):
    task = AudioFileTask("notes", ("a", "b", "c"), section(places["base"]), section(places["ast"]), longest=1.0)
    clips = [AudioExample(name, tone(hertz, 0.5), name) for name, hertz in (("a", 300), ("b", 900))]
    for role, name in (("slm", "base"), ("llm", "ast")):
        part = task.of(role)
        model = part.load_model(section(places[name]), role, CPU, 0).eval()
        assert part.logits(model, task.collate(clips)).shape == (2, 3)
        assert part.evidence(clips, StatisticsConfig(features="slm"), model).rows.shape[0] == 2
    assert task.facts() == {"classes": ["a", "b", "c"], "milliseconds": 1_000}
    client = audio_task_for_client("notes", section(places["base"]), task.facts())
    assert (client.reader.longest, client.classes, client.options) == (1.0, task.classes, task.options)
    with pytest.raises(UserError, match="facts lack classes"):
        audio_task_for_client("notes", section(places["base"]), {"milliseconds": 5})


def test_examples_travel_as_lines(places, tmp_path):
    task = AudioFileTask("notes", ("a", "b"), section("ast-words-small"), None)
    clip = AudioExample("x", tone(300, 0.2), "b", "north", ("a", "b"))
    (tmp_path / "train.jsonl").write_text(task.write_examples([clip]))
    (again,) = task.read_examples(tmp_path / "train.jsonl")
    assert (again.id, again.label, again.group, again.content) == ("x", "b", "north", clip.content)
    changes = (
        ('"b"', '"z"', "label 'z' is not"),
        ('"x"', "3", "no example"),
        ('"audio": "', '"audio": "*', "base64"),
    )
    for old, new, said in changes:
        (tmp_path / "odd.jsonl").write_text(task.write_examples([clip]).replace(old, new))
        with pytest.raises(UserError, match=f"line 1.*{said}"):
            task.read_examples(tmp_path / "odd.jsonl")


def test_language_models_and_cut_classifiers_are_refused(places):
    with pytest.raises(UserError, match="is a language model"):
        loaded("smollm2-135m")
    with pytest.raises(UserError, match=r"slm\.layers 1: an audio classifier can't be cut"):
        THREE.load_model(section(places["ast"]).model_copy(update={"layers": 1}), "slm", CPU, 0)
