"""Clips as rows: the loudness of mel bands over time, and what the last layer of a classifier reads."""

import pytest
import torch
from tests.modalities.audio.clips import FirstSample, constant, tone
from tests.parties import add_adapter
from torch import nn
from transformers import ASTForAudioClassification

from fedcollm.config import StatisticsConfig
from fedcollm.errors import UserError
from fedcollm.modalities.audio.classification import AudioExample, AudioTask
from fedcollm.modalities.audio.evidence import loudness
from fedcollm.modalities.audio.features import LogMel
from fedcollm.modalities.audio.models import audio_config
from fedcollm.models.adapters import read_adapter, write_adapter

CONSTANT, NGRAMS, SLM, BOTH = (StatisticsConfig(features=n) for n in ("constant", "ngrams", "slm", "ngrams_slm"))
TASK = AudioTask("tones", [str(i) for i in range(20)], LogMel(16, 96))
CLIPS = [AudioExample("x", tone(300), "2"), AudioExample("y", tone(3_000), None)]


def test_rows_have_norm_one_and_targets_a_sign():
    evidence = TASK.evidence(CLIPS, NGRAMS)
    assert evidence.rows.shape == (2, 256)
    assert evidence.rows.norm(dim=1).tolist() == [pytest.approx(1), pytest.approx(1)]
    assert evidence.targets[0].tolist() == [-1.0, -1.0, 1.0, *[-1.0] * 17]
    assert evidence.targets[1].tolist() == [0.0] * 20
    assert evidence.labels == TASK.classes


def test_features_tell_pitch_and_time_apart_but_not_loudness():
    low, high = (TASK.reader.read(clip.recording) for clip in CLIPS)
    low, high = (samples + 0.01 * torch.randn(8_000, generator=torch.Generator().manual_seed(0))
                 for samples in (low, high))  # fmt: skip
    rows = loudness([low, high, 0.25 * low, torch.cat([low, high]), torch.cat([high, low])])
    assert (rows[0] - rows[2]).abs().max() < 0.05
    assert (rows[0] - rows[1]).abs().max() > 1
    assert (rows[3] - rows[4]).abs().max() > 1
    assert rows.mean(1).abs().max() < 1e-5


def test_constant_features_are_one_column_of_ones():
    assert TASK.evidence(CLIPS, CONSTANT).rows.tolist() == [[1.0], [1.0]]


def test_hidden_states_are_those_that_the_classifier_reads_without_the_adapter():
    torch.manual_seed(0)
    network = ASTForAudioClassification(audio_config("ast-words-small")).eval()
    with torch.no_grad():
        inputs = LogMel(16, 96)(TASK.collate(CLIPS).clips)
        expected = nn.functional.normalize(network.audio_spectrogram_transformer(**inputs).pooler_output, dim=1)
    model = add_adapter(network, rank=2, causal_lm=False)
    write_adapter(model, {name: torch.full_like(t, 0.1) for name, t in read_adapter(model).items()})
    assert torch.allclose(TASK.evidence(CLIPS, SLM, model).rows, expected, atol=1e-5)
    assert TASK.evidence(CLIPS, BOTH, model).rows.shape == (2, 256 + 32)


@pytest.mark.parametrize("model", [None, nn.Identity()])
def test_classifier_without_a_last_layer_that_we_know_is_refused(model):
    with pytest.raises(UserError, match="no layer named classifier"):
        AudioTask("x", ["a"], FirstSample()).evidence([AudioExample("x", constant(0.5), None)], SLM, model)
