"""Image classifiers with random weights, which depend on a seed and nothing else, and directories of them."""

from types import SimpleNamespace

import pytest
import torch

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.modalities.vision.models import VISION_MODELS, ImageModels

CPU = torch.device("cpu")
MODELS = ImageModels()
SMALL = ModelConfig(source="vit-digits-small", dtype="float32")


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
    assert [MODELS.is_pretrained(ModelConfig(source=source)) for source in (*VISION_MODELS, str(tmp_path))] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("load", [MODELS.outline, lambda section: MODELS.load_model(section, "slm", CPU, 0)])
def test_source_that_is_no_image_classifier_is_named(load, tmp_path):
    for source in ("smollm2-135m", str(tmp_path)):
        with pytest.raises(UserError, match="source"):
            load(ModelConfig(source=source))


def test_outline_has_no_storage():
    network = MODELS.outline(SMALL)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert network.num_parameters() == 18218


def test_footprint_is_the_patches_and_the_class_token():
    assert MODELS.footprint(None, SimpleNamespace(image_size=8, patch_size=2)) == (17, 1)
