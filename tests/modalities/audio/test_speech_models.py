"""Which kind of speech model a source is, how it is cut, and which of its layers get an adapter."""

import json
from pathlib import Path

import pytest
import torch
from tests.modalities.audio.clips import tone
from tests.modalities.audio.speech_models import ctc_directory, whisper_directory
from tests.modalities.vision.tiny_classifiers import save_classifier
from transformers import WhisperConfig, WhisperForConditionalGeneration

from fedcollm.config import AdapterConfig, ModelConfig
from fedcollm.errors import UserError
from fedcollm.modalities.audio.ctc import CtcTask
from fedcollm.modalities.audio.recognizers import build_recognizer, build_recognizer_for_client
from fedcollm.modalities.audio.speech_models import SpeechModels, layers_of_slm, speech_kind
from fedcollm.modalities.audio.transcripts import SpeechExample
from fedcollm.modalities.audio.whisper import WhisperTask
from fedcollm.runs.build_models import adapted

CPU = torch.device("cpu")
MODELS = SpeechModels(longest=1.0)


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    root: Path = tmp_path_factory.mktemp("speech")
    whisper_directory(root / "deep")
    shape = WhisperConfig.from_pretrained(root / "deep", encoder_layers=3, decoder_layers=3)
    torch.manual_seed(3)
    WhisperForConditionalGeneration(shape).save_pretrained(root / "deep")
    return {
        "ctc": ctc_directory(root / "ctc"),
        "whisper": whisper_directory(root / "whisper"),
        "deep": str(root / "deep"),
        "images": save_classifier("vit", root / "images"),
    }


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def section(source: str, **keys) -> ModelConfig:
    return ModelConfig(source=source, dtype="float32", **keys)


def test_configuration_says_which_kind_a_model_is(places):
    assert [speech_kind(places[name]) for name in ("ctc", "whisper", "deep")] == ["ctc", "whisper", "whisper"]
    with pytest.raises(UserError, match=r"does not recognize speech: it is of type vit \(ViTForImageClassification\)"):
        speech_kind(places["images"])
    with pytest.raises(UserError, match="is a language model"):
        speech_kind("smollm2-135m")


@pytest.mark.parametrize(("name", "kind"), [("ctc", CtcTask), ("whisper", WhisperTask)])
def test_client_builds_the_servers_task_from_its_facts(places, name, kind):
    one = section(places[name])
    task = build_recognizer("notes", one, one, 1.0)
    assert type(task) is kind
    client = build_recognizer_for_client("notes", one, json.loads(json.dumps(task.of("slm").facts())))
    assert (type(client), client.options, client.reader.longest) == (kind, task.options, 1.0)
    with pytest.raises(UserError, match="facts lack milliseconds"):
        build_recognizer_for_client("notes", one, {})


def test_pairs_of_two_kinds_and_unknown_languages_are_refused(places):
    ctc, whisper = section(places["ctc"]), section(places["whisper"])
    with pytest.raises(UserError, match=r"is a ctc model and llm\.source .* a whisper model"):
        build_recognizer("notes", ctc, whisper, 1.0)
    with pytest.raises(UserError, match=r"task\.format\.language 'en' is for Whisper"):
        build_recognizer("notes", ctc, ctc, 1.0, "en")
    with pytest.raises(UserError, match=r"task\.format\.language: .* has no language 'xx'"):
        build_recognizer("notes", whisper, whisper, 1.0, "xx")


def test_auto_adapts_every_linear_layer_but_the_head(places):
    ctc, whisper = (MODELS.load_model(section(places[name]), "slm", CPU, 0) for name in ("ctc", "whisper"))
    one = "wav2vec2.encoder.layers.0"
    assert sorted(MODELS.adapted_layers(ctc)) == sorted(
        [f"{one}.attention.{name}_proj" for name in ("q", "k", "v", "out")]
        + [f"{one}.feed_forward.{name}_dense" for name in ("intermediate", "output")]
    )
    # encoder: 4 of attention and 2; decoder: twice 4 and 2
    assert len(MODELS.adapted_layers(whisper)) == 16
    for network in (ctc, whisper):
        tuned = adapted(network, AdapterConfig(rank=2), MODELS)
        trained = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
        assert all("lora" in name for name in trained)
        assert MODELS.trained_modules(network) == []


@pytest.mark.parametrize(("layers", "kept"), [([0, 2], [0, 2]), (2, [0, 2]), (1, [0])])
def test_both_stacks_of_whisper_are_cut_once(places, cache, layers, kept):
    whole = MODELS.load_model(section(places["deep"]), "llm", CPU, 0)
    one = section(places["deep"], layers=layers)
    MODELS.prepare(one)
    made = [place for place in cache.iterdir() if place.is_dir()]
    cut = MODELS.load_model(one, "slm", CPU, 0)
    assert [place for place in cache.iterdir() if place.is_dir()] == made
    for before, after in ((whole.model.encoder, cut.model.encoder), (whole.model.decoder, cut.model.decoder)):
        assert len(after.layers) == len(kept)
        for new, old in enumerate(kept):
            assert torch.equal(after.layers[new].fc1.weight, before.layers[old].fc1.weight)
    assert layers_of_slm(one, whole) == kept
    assert sum(p.numel() for p in MODELS.outline(one).parameters()) == sum(p.numel() for p in cut.parameters())
    assert MODELS.footprint(None, cut.config) == (50 + 18, 18)  # 1 s: 50 positions, 8 + 10 tokens


def test_ctc_is_cut_too_and_layers_that_do_not_exist_are_refused(places):
    cut = MODELS.load_model(section(places["ctc"], layers=[0]), "slm", CPU, 0)
    assert cut.config.num_hidden_layers == 1
    with pytest.raises(UserError, match="of a model with 1 layers"):
        MODELS.load_model(section(places["ctc"], layers=[1]), "slm", CPU, 0)
    with pytest.raises(UserError, match="of a model with 3 layers"):
        MODELS.outline(section(places["deep"], layers=4))


@pytest.mark.parametrize("name", ["ctc", "whisper"])
def test_examples_travel_as_lines(places, tmp_path, name):
    task = build_recognizer("notes", section(places[name]), section(places[name]), 1.0)
    clip = SpeechExample("x", tone(300, 0.2), "a b", "north")
    (tmp_path / "train.jsonl").write_text(task.write_examples([clip]))
    (again,) = task.read_examples(tmp_path / "train.jsonl")
    assert (again.id, again.label, again.group, again.content) == ("x", "a b", "north", clip.content)
    (tmp_path / "odd.jsonl").write_text(task.write_examples([SpeechExample("y", tone(300, 0.2), "!")]))
    with pytest.raises(UserError, match="has no word"):
        task.read_examples(tmp_path / "odd.jsonl")


def test_whisper_learns_what_is_scored(places):
    task = WhisperTask("letters", places["whisper"], longest=1.0, prompt=("<|startoftranscript|>", "<|notimestamps|>"))
    one, other = (task.collate([SpeechExample("x", tone(300, 0.2), text)]) for text in ("a b", "  A, b!"))
    assert one.targets.tolist() == other.targets.tolist() == [4, 5, 7]
