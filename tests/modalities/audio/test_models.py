"""Audio classifiers with random weights, which depend on a seed and nothing else, and directories of them."""

from types import SimpleNamespace

import pytest
import torch
from tests.modalities.audio.clips import tone
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.modalities.audio.classification import AudioExample, AudioTask
from fedcollm.modalities.audio.features import LogMel
from fedcollm.modalities.audio.models import AUDIO_MODELS, AudioModels, features_of

CPU = torch.device("cpu")
MODELS = AudioModels()
SMALL = ModelConfig(source="ast-words-small", dtype="float32")


def weights(section: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
    return MODELS.load_model(section, "slm", CPU, seed).state_dict()


def test_random_weights_depend_on_the_seed_alone():
    one, other = weights(SMALL, 3), weights(SMALL, 4)
    torch.manual_seed(99)
    again = weights(SMALL, 3)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_directory_gives_back_what_was_saved(tmp_path):
    MODELS.load_model(SMALL, "slm", CPU, 3).save_pretrained(tmp_path)
    saved = SMALL.model_copy(update={"source": str(tmp_path)})
    one, other = weights(SMALL, 3), weights(saved, 4)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert MODELS.outline(saved).config.hidden_size == 32


def test_only_directories_are_pretrained(tmp_path):
    sources = (*AUDIO_MODELS, str(tmp_path))
    assert [MODELS.is_pretrained(ModelConfig(source=source)) for source in sources] == [False, False, True]


@pytest.mark.parametrize(
    "load",
    [
        MODELS.outline,
        lambda section: MODELS.load_model(section, "slm", CPU, 0),
        lambda section: features_of(section.source),
    ],
)
def test_source_that_is_no_audio_classifier_is_named(load, tmp_path):
    for source in ("smollm2-135m", str(tmp_path)):
        with pytest.raises(UserError, match="source"):
            load(ModelConfig(source=source))


def test_shipped_models_read_spectrograms_of_their_own_size():
    for source in AUDIO_MODELS:
        features, shape = features_of(source), MODELS.outline(ModelConfig(source=source)).config
        assert isinstance(features, LogMel)
        assert (features.bands, features.frames) == (shape.num_mel_bins, shape.max_length) == (16, 96)


def test_outline_has_no_storage():
    network = MODELS.outline(SMALL)
    assert all(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize(
    ("shape", "positions"),
    [
        ({"num_mel_bins": 16, "patch_size": 16, "frequency_stride": 16, "max_length": 96, "time_stride": 8}, 13),
        ({"conv_stride": (5, 2, 2)}, 400),
        ({"max_source_positions": 50}, 50),
    ],
)
def test_footprint_is_the_patches_or_frames_of_a_clip(shape, positions):
    clip = AudioExample("x", tone(440, 0.5), None)
    assert MODELS.footprint(clip, SimpleNamespace(**shape)) == (positions, 1)


def test_waveform_classifier_is_loaded_and_reads_what_its_extractor_makes(tmp_path):
    shape = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=[8, 8],
        conv_kernel=[10, 8], conv_stride=[8, 8], num_feat_extract_layers=2, num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2, classifier_proj_size=8, num_labels=2,
    )  # fmt: skip
    Wav2Vec2ForSequenceClassification(shape).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    task = AudioTask("notes", ["low", "high"], features_of(str(tmp_path)))
    model = task.load_model(ModelConfig(source=str(tmp_path), dtype="float32"), "slm", CPU, 0).eval()
    batch = task.collate([AudioExample("x", tone(440), "low"), AudioExample("y", tone(880, 0.2), "high")])
    assert task.logits(model, batch).shape == (2, 2)
