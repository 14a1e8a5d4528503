"""Image classifiers of seven architectures: heads, adapters, frozen statistics, and how adapters are stored."""

import json
from types import SimpleNamespace

import pytest
import torch
from tests.modalities.vision.tiny_classifiers import TINY, save_classifier
from torch import nn

from fedcollm.config import AdapterConfig, ModelConfig
from fedcollm.errors import UserError
from fedcollm.modalities.classifiers import FreshHead, FrozenBatchNorm2d, freeze_statistics
from fedcollm.modalities.vision.classifiers import ClassifierModels
from fedcollm.models.adapters import load_adapter, parameter_counts, read_adapter, save_adapter, write_adapter
from fedcollm.models.fused.patch import fuse, unfused
from fedcollm.runs.build_models import adapted

CPU = torch.device("cpu")
THREE, FIVE = ClassifierModels("abc"), ClassifierModels("abcde")
HEADS = {"deit": ["cls_classifier", "distillation_classifier"], "resnet": ["classifier.1"]}
each_architecture = pytest.mark.parametrize("name", TINY)
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Directories of all architectures, each with five classes."""
    root = tmp_path_factory.mktemp("classifiers")
    return {name: save_classifier(name, root / name) for name in TINY}


def loaded(place: str, models: ClassifierModels = THREE, seed: int = 1, **section) -> nn.Module:
    return models.load_model(ModelConfig(source=place, **{"dtype": "float32", **section}), "slm", CPU, seed).eval()


def shaken(model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: t + 0.3 * torch.randn(t.shape, generator=generator) for name, t in read_adapter(model).items()}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values=IMAGES).logits


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# --- heads ---


@each_architecture
def test_head_with_other_classes_is_replaced_and_all_else_is_kept(places, name):
    before, after = loaded(places[name], FIVE), loaded(places[name])
    heads = HEADS.get(name, ["classifier"])
    assert THREE.head_names(before) == THREE.head_names(after) == heads
    assert FIVE.trained_modules(before) == []
    assert THREE.trained_modules(after) == heads
    assert (logits(before).shape, logits(after).shape) == ((4, 5), (4, 3))
    old, new = before.state_dict(), after.state_dict()
    kept = [key for key in old if not key.startswith(tuple(f"{head}." for head in heads))]
    assert all(torch.equal(old[key], new[key]) for key in kept)
    assert after.config.num_labels == 3
    assert after.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_fresh_head_depends_on_its_seed_alone(places):
    one = loaded(places["vit"]).classifier.weight
    torch.manual_seed(99)
    assert torch.equal(loaded(places["vit"]).classifier.weight, one)
    assert not torch.equal(loaded(places["vit"], seed=2).classifier.weight, one)
    two = loaded(places["deit"])
    assert not torch.equal(two.cls_classifier.weight, two.distillation_classifier.weight)


def test_fresh_head_is_in_float32_beside_a_base_in_bfloat16(places):
    network = loaded(places["vit"], dtype="bfloat16")
    assert (network.classifier.weight.dtype, network.vit.layernorm.weight.dtype) == (torch.float32, torch.bfloat16)
    assert network(pixel_values=IMAGES.bfloat16()).logits.dtype == torch.float32


def test_fresh_head_by_hand():
    head = FreshHead(2, 1)
    assert head.weight.abs().max() < 0.1  # five standard deviations
    assert head.bias.tolist() == [0.0]
    head.weight.data = torch.tensor([[2.0, -1.0]])
    assert head(torch.tensor([[3.0, 4.0]], dtype=torch.bfloat16)).tolist() == [[2.0]]


def test_weights_without_a_head_get_one_even_if_the_number_of_classes_fits(places, tmp_path):
    network = loaded(places["vit"], FIVE)
    network.vit.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_labels": 5}))
    section = ModelConfig(source=str(tmp_path), dtype="float32")
    assert FIVE.trained_modules(loaded(str(tmp_path), FIVE)) == ["classifier"]
    assert FIVE.trained_modules(FIVE.outline(section)) == ["classifier"]
    assert FIVE.is_pretrained(section) is False


def test_only_a_head_of_the_tasks_classes_does_not_depend_on_the_run(places):
    section = ModelConfig(source=places["vit"])
    assert (FIVE.is_pretrained(section), THREE.is_pretrained(section)) == (True, False)


# --- sources that are refused ---


def test_layers_are_refused_by_name(places):
    section = ModelConfig(source=places["vit"], layers=1)
    with pytest.raises(UserError, match=r"slm\.layers 1: .*Set slm\.layers: null"):
        THREE.load_model(section, "slm", CPU, 0)
    for method in (THREE.outline, THREE.prepare):
        with pytest.raises(UserError, match=r"layers 1: .*Set layers: null"):
            method(section)


@pytest.mark.parametrize("source", ["smollm2-135m", "model.gguf"])
def test_language_model_is_refused_before_it_is_converted(source):
    with pytest.raises(UserError, match="is a language model"):
        THREE.prepare(ModelConfig(source=source))


def test_directory_of_something_else_is_refused(model_directories, tmp_path):
    for place in (model_directories["slm"], str(tmp_path)):
        with pytest.raises(UserError, match="can't be loaded"):
            loaded(place)
        with pytest.raises(UserError, match="no such directory"):
            loaded(str(tmp_path / "nowhere"))


def test_classifier_without_some_of_its_weights_is_refused(places, tmp_path):
    network = loaded(places["vit"], FIVE)
    state = {key: value for key, value in network.state_dict().items() if "layernorm." not in key}
    network.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match=r"slm\.source .* is no image classifier: it has no vit\.layernorm"):
        loaded(str(tmp_path))


def test_network_without_a_head_that_we_know_is_refused(places, monkeypatch):
    monkeypatch.setattr(ClassifierModels, "heads", ("top", "last"))
    with pytest.raises(UserError, match="no output layer named top or last"):
        loaded(places["vit"])


# --- adapters ---


@each_architecture
def test_adapter_is_on_linear_layers_and_convolutions_without_groups(places, name):
    network = loaded(places[name])
    layers = dict(network.named_modules())
    chosen = THREE.adapted_layers(network)
    assert chosen
    assert not set(chosen) & set(THREE.head_names(network))
    convolutions = {key for key in chosen if isinstance(layers[key], nn.Conv2d)}
    assert all(layers[key].groups == 1 for key in convolutions)
    assert bool(convolutions) is (name in ("convnext", "mobilenet", "resnet", "efficientnet"))
    heads = THREE.head_names(network)
    model = adapted(network, AdapterConfig(rank=2), THREE)
    names = {key for key in read_adapter(model) if "lora" not in key}
    assert names == {f"base_model.model.{head}.{kind}" for head in heads for kind in ("weight", "bias")}
    lora = {key.removeprefix("base_model.model.").split(".lora_")[0] for key in read_adapter(model) if "lora" in key}
    assert lora == set(chosen)


def test_parameters_counted_by_hand(places):
    model = adapted(loaded(places["vit"]), AdapterConfig(rank=2), THREE)
    # one layer: q, k, v, o and both of the MLP are 16 -> 16, 2 * (16 + 16) = 64 each; the head 16 * 3 + 3 = 51
    assert parameter_counts(model)[0] == 6 * 64 + 51
    whole = adapted(loaded(places["vit"], FIVE), AdapterConfig(rank=2), FIVE)
    assert parameter_counts(whole)[0] == 6 * 64
    outline = adapted(THREE.outline(ModelConfig(source=places["vit"])), AdapterConfig(rank=2), THREE)
    assert parameter_counts(outline) == parameter_counts(model)


@each_architecture
def test_adapter_and_head_are_stored_and_read_back_bit_for_bit(places, name, tmp_path):
    model = adapted(loaded(places[name]), AdapterConfig(rank=2), THREE, base_name=places[name])
    before, adapter = logits(model), shaken(model)
    save_adapter(model, adapter, tmp_path / "slm")
    after = logits(model)
    assert (before - after).abs().max() > 1e-3
    other = adapted(loaded(places[name], seed=7), AdapterConfig(rank=2), THREE, seed=7)
    assert not torch.equal(logits(other), after)
    load_adapter(other, tmp_path / "slm")
    assert equal(read_adapter(other), adapter)
    assert torch.equal(logits(other), after)
    third = adapted(loaded(places[name], seed=8), AdapterConfig(rank=2), THREE, seed=8)
    write_adapter(third, read_adapter(other))
    assert torch.equal(logits(third), after)


@each_architecture
def test_fused_layers_compute_what_pefts_do(places, name):
    model = adapted(loaded(places[name]), AdapterConfig(rank=2), THREE)
    write_adapter(model, shaken(model))
    fuse(model)
    fast = logits(model)
    with unfused(model):
        torch.testing.assert_close(fast, logits(model), atol=1e-4, rtol=1e-4)


def test_target_that_is_the_fresh_head_is_refused(places):
    with pytest.raises(UserError, match=r"adapter\.targets: classifier is trained as a whole"):
        adapted(loaded(places["vit"]), AdapterConfig(targets=["q_proj", "classifier"]), THREE)


def test_method_that_trains_nothing_beside_itself_is_refused(places):
    with pytest.raises(UserError, match=r"adapter\.kind: trainable_tokens trains rows of the embedding"):
        adapted(loaded(places["vit"]), AdapterConfig(kind="trainable_tokens"), THREE)


# --- statistics ---


@pytest.mark.parametrize("name", ["mobilenet", "resnet", "efficientnet"])
def test_training_does_not_change_the_statistics_of_batch_normalization(places, name):
    network = loaded(places[name])
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(type(module) is FrozenBatchNorm2d for module in norms)
    model = adapted(network, AdapterConfig(rank=2), THREE)
    before = {key: value.clone() for key, value in network.named_buffers()}
    assert any("running_mean" in key for key in before)
    for mode in (True, False):
        model.train(mode)
        model(pixel_values=IMAGES).logits.sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in network.named_buffers())


@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, (2, 1)), (nn.BatchNorm2d, (2, 1, 1, 1))])
def test_frozen_normalization_by_hand(kind, shape):
    norm = kind(1, eps=0.0)
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    network = freeze_statistics(nn.Sequential(norm)).train()
    assert network(torch.tensor([3.0, 7.0]).view(shape)).flatten().tolist() == [1.0, 3.0]  # (3 - 1) / 2, (7 - 1) / 2
    assert norm.running_mean.tolist() == [1.0]
    assert norm.num_batches_tracked == 0


# --- sizes ---


@pytest.mark.parametrize(
    ("shape", "positions"),
    [
        ({"image_size": 32, "patch_size": 8}, 17),
        ({"image_size": [32, 16], "patch_size": (8, 8)}, 17),
        ({"image_size": 32}, 5),  # patches of 16
        ({}, 197),  # 224 / 16 = 14, squared, and one
    ],
)
def test_footprint_is_the_patches_and_the_class_token(shape, positions):
    assert THREE.footprint(None, SimpleNamespace(**shape)) == (positions, 1)
