"""What models read: a tone is loud in its own band, and an extractor is that of the model's directory."""

import json

import pytest
import torch
from tests.modalities.audio.clips import tone
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from fedcollm.errors import UserError
from fedcollm.modalities.audio.features import Extractor, LogMel
from fedcollm.modalities.audio.recordings import Reader

READ = Reader().read


def test_spectrogram_has_fixed_frames_and_no_offset_or_scale():
    short, long = READ(tone(440, 0.2)), READ(tone(440, 1.0))
    values = LogMel(16, 50)([short, long])["input_values"]
    assert values.shape == (2, 50, 16)
    assert values.mean((1, 2)).abs().max() < 1e-5
    assert (values.std((1, 2)) - 1).abs().max() < 1e-3
    noise = 0.1 * torch.randn(8_000, generator=torch.Generator().manual_seed(0))
    loud, soft = LogMel(16, 50)([noise, 0.5 * noise])["input_values"]
    assert (loud - soft).abs().max() < 0.01


def test_higher_tones_are_in_higher_bands():
    powers = LogMel(16, 40).powers([READ(tone(hertz)) for hertz in (300, 1_000, 3_000, 6_000)])
    bands = powers.mean(1).argmax(-1).tolist()
    assert bands == sorted(set(bands))
    assert (bands[0] < 4, bands[-1] > 12) == (True, True)


def test_silence_after_a_short_clip_is_the_floor():
    powers = LogMel(16, 40).powers([READ(tone(440, 0.1))])
    assert powers[0, 20:].unique().tolist() == [-8.0]


def test_longest_clip_is_what_fills_the_frames():
    assert LogMel(16, 96).longest == 0.96


def test_a_clip_does_not_depend_on_its_batch():
    clips = [READ(tone(hertz, 0.3)) for hertz in (300, 1_000)]
    assert torch.equal(LogMel(16, 40)(clips)["input_values"][1:], LogMel(16, 40)(clips[1:])["input_values"])


def test_extractor_is_that_of_the_directory(tmp_path):
    clips = [READ(tone(440, seconds)) for seconds in (0.2, 0.1)]
    for name, kind, key, shape in (
        ("ast", ASTFeatureExtractor(num_mel_bins=16, max_length=30), "input_values", (2, 30, 16)),
        ("wave", Wav2Vec2FeatureExtractor(return_attention_mask=True), "input_values", (2, 3_200)),
        ("whisper", WhisperFeatureExtractor(feature_size=8, chunk_length=2), "input_features", (2, 8, 200)),
    ):
        kind.save_pretrained(tmp_path / name)
        features = Extractor(str(tmp_path / name))
        assert features(clips)[key].shape == shape
        assert features.rate == 16_000
        json.dumps(features.options)
    assert features.longest == 2.0
    assert Extractor(str(tmp_path / "wave"))(clips)["attention_mask"].sum(1).tolist() == [3_200, 1_600]


def test_directory_without_an_extractor_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        Extractor(str(tmp_path))
