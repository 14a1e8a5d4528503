"""Images as rows: their pixels, and what the last layer of a classifier reads."""

import pytest
import torch
from tests.parties import add_adapter
from torch import nn
from transformers import ViTForImageClassification

from fedcollm.config import StatisticsConfig
from fedcollm.errors import UserError
from fedcollm.modalities.vision.models import vision_config
from fedcollm.modalities.vision.task import ImageExample, ImageTask
from fedcollm.models.adapters import read_adapter, write_adapter

CONSTANT, NGRAMS, SLM = (StatisticsConfig(features=name) for name in ("constant", "ngrams", "slm"))
TASK = ImageTask("images", [str(i) for i in range(10)])
IMAGES = [
    ImageExample("x", torch.tensor([[[3.0, 4.0]]]), 2),
    ImageExample("y", torch.tensor([[[0.0, 2.0]]]), None),
]


def test_pixels_are_divided_by_their_norm():
    evidence = TASK.evidence(IMAGES, NGRAMS)
    assert evidence.rows.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 1.0]]
    assert evidence.targets[0].tolist() == [-1.0, -1.0, 1.0, *[-1.0] * 7]
    assert evidence.targets[1].tolist() == [0.0] * 10
    assert evidence.labels == TASK.classes


def test_constant_features_are_one_column_of_ones():
    assert TASK.evidence(IMAGES, CONSTANT).rows.tolist() == [[1.0], [1.0]]


def test_hidden_states_are_those_that_the_classifier_reads_without_the_adapter():
    torch.manual_seed(0)
    network = ViTForImageClassification(vision_config("vit-digits-small")).eval()
    digits = [ImageExample(str(i), torch.rand(1, 8, 8), i) for i in range(3)]
    with torch.no_grad():
        whole = network(pixel_values=TASK.collate(digits).pixels, output_hidden_states=True).hidden_states[-1]
        expected = nn.functional.normalize(network.vit.layernorm(whole)[:, 0], dim=1)
    model = add_adapter(network, rank=2, causal_lm=False)
    write_adapter(model, {name: torch.full_like(t, 0.1) for name, t in read_adapter(model).items()})
    assert torch.allclose(TASK.evidence(digits, SLM, model).rows, expected, atol=1e-5)


@pytest.mark.parametrize("model", [None, nn.Identity()])
def test_classifier_without_a_last_layer_that_we_know_is_refused(model):
    with pytest.raises(UserError, match="no layer named classifier"):
        TASK.evidence(IMAGES, SLM, model)
