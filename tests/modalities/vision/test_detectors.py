"""Detectors of both families: heads, adapters, the shipped pair, and how adapters are stored."""

import json

import pytest
import torch
from tests.modalities.vision.tiny_classifiers import save_classifier
from tests.modalities.vision.tiny_detectors import TINY, save_detector
from torch import nn

from fedcollm.config import AdapterConfig, ModelConfig
from fedcollm.errors import UserError
from fedcollm.modalities.vision.detection_pixels import DetectionPixels, pixels_of
from fedcollm.modalities.vision.detectors import DETECTORS, HEADS, DetectorModels
from fedcollm.models.adapters import load_adapter, read_adapter, save_adapter, write_adapter
from fedcollm.models.fused.patch import fuse
from fedcollm.runs.build_models import adapted

CPU = torch.device("cpu")
THREE, FIVE = DetectorModels("abc"), DetectorModels("abcde")
each_family = pytest.mark.parametrize("name", TINY)
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Directories of both families, each with five classes."""
    root = tmp_path_factory.mktemp("detectors")
    return {name: save_detector(name, root / name) for name in TINY}


def loaded(place: str, models: DetectorModels = THREE, seed: int = 1, **section) -> nn.Module:
    return models.load_model(ModelConfig(source=place, **{"dtype": "float32", **section}), "slm", CPU, seed).eval()


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        answer = model(pixel_values=IMAGES)
    return torch.cat([answer.logits, answer.pred_boxes], -1)


@each_family
def test_class_head_with_other_classes_is_fresh_and_both_heads_travel(places, name):
    before, after = loaded(places[name], FIVE), loaded(places[name])
    assert FIVE.trained_modules(before) == []
    assert THREE.trained_modules(after) == ["class_labels_classifier", "bbox_predictor"]
    assert (outputs(before).shape, outputs(after).shape) == ((3, 4, 10), (3, 4, 8))
    assert torch.equal(outputs(before)[..., -4:], outputs(after)[..., -4:])
    assert after.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert torch.equal(outputs(loaded(places[name])), outputs(after))
    assert not torch.equal(outputs(loaded(places[name], seed=2)), outputs(after))


@each_family
def test_adapter_is_on_linear_layers_outside_of_the_heads(places, name):
    layers = THREE.adapted_layers(loaded(places[name]))
    assert layers
    assert not any(layer.startswith(HEADS) for layer in layers)
    assert len(layers) == {"yolos": 6, "detr": 6 + 10}[name]


@each_family
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapter_and_fresh_heads_are_stored_bit_for_bit(places, name, dtype, tmp_path):
    def build() -> nn.Module:
        model = adapted(loaded(places[name], dtype=dtype), AdapterConfig(rank=2), THREE, 5, places[name])
        fuse(model)
        return model.eval()

    model, generator = build(), torch.Generator().manual_seed(3)
    trained = read_adapter(model)
    assert {part for part in HEADS if any(part in tensor for tensor in trained)} == set(HEADS)
    assert all(tensor.dtype == torch.float32 for tensor in trained.values())
    shaken = {key: t + 0.3 * torch.randn(t.shape, generator=generator) for key, t in trained.items()}
    write_adapter(model, shaken)
    save_adapter(model, shaken, tmp_path / "adapter")
    other = build()
    load_adapter(other, tmp_path / "adapter")
    images = IMAGES.to(torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    with torch.no_grad():
        one, two = model(pixel_values=images), other(pixel_values=images)
    assert torch.equal(one.logits, two.logits)
    assert torch.equal(one.pred_boxes, two.pred_boxes)


@each_family
def test_outline_has_the_same_weights_without_values(places, name):
    outline, network = THREE.outline(ModelConfig(source=places[name])), loaded(places[name])
    assert {n: p.shape for n, p in outline.named_parameters()} == {n: p.shape for n, p in network.named_parameters()}
    assert all(parameter.is_meta for parameter in outline.parameters())
    assert THREE.trained_modules(outline) == list(HEADS)
    assert [DetectorModels(names).is_pretrained(ModelConfig(source=places[name])) for names in ("abc", "abcde")] == [
        False,
        True,
    ]


def test_statistics_of_detr_stay_in_training(places):
    network = loaded(places["detr"]).train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(pixel_values=IMAGES)
    assert before
    assert all(torch.equal(before[name], value) for name, value in network.named_buffers())


@pytest.mark.parametrize("source", DETECTORS)
def test_shipped_detectors_are_random_and_have_the_outline_of_their_network(source):
    section = ModelConfig(source=source, layers=None)
    network = loaded(source, FIVE, layers=None)
    pixels = torch.zeros(1, 3, 64, 64)
    assert torch.equal(loaded(source, FIVE, layers=None)(pixels).logits, network(pixels).logits)
    assert not torch.equal(loaded(source, FIVE, seed=2, layers=None)(pixels).logits, network(pixels).logits)
    assert not FIVE.is_pretrained(section)
    assert FIVE.footprint(None, network.config) == (256, 16)
    outline = FIVE.outline(section)
    assert {n: p.shape for n, p in outline.named_parameters()} == {n: p.shape for n, p in network.named_parameters()}
    assert all(parameter.is_meta for parameter in outline.parameters())


def test_adapters_of_shipped_detectors_reach_every_stage():
    network = loaded("cells-shapes-small", FIVE, layers=None)
    assert FIVE.trained_modules(network) == []
    # three stages that merge, two convolutional blocks with two linear layers each, one layer with six
    assert len(FIVE.adapted_layers(network)) == 3 + 2 * 2 + 6


def test_shipped_detector_for_other_classes_has_fresh_heads_and_leaves_the_table_as_it_is():
    network = loaded("cells-shapes-small", layers=None)
    assert THREE.trained_modules(network) == list(HEADS)
    assert network(torch.zeros(2, 3, 64, 64)).logits.shape == (2, 16, 4)
    assert THREE.trained_modules(THREE.outline(ModelConfig(source="cells-shapes-small", layers=None))) == list(HEADS)
    assert DETECTORS["cells-shapes-small"].num_labels == 5


@pytest.mark.parametrize(
    ("source", "said"),
    [("smollm2-135m", "language model"), ("no/such/place", "no such directory"), ("classifier", "family vit")],
)
def test_sources_that_are_no_detector_are_refused(source, said, tmp_path):
    place = save_classifier("vit", tmp_path / "vit") if source == "classifier" else source
    with pytest.raises(UserError, match=said):
        loaded(place, layers=None)


def test_layers_can_not_be_cut(places):
    with pytest.raises(UserError, match="layers 1"):
        loaded(places["yolos"], layers=1)


def test_backbone_without_heads_gets_fresh_ones_and_other_weights_may_not_be_missing(places, tmp_path):
    network = loaded(places["yolos"], FIVE)
    network.vit.save_pretrained(tmp_path / "backbone")
    fresh = loaded(str(tmp_path / "backbone"), FIVE)
    assert FIVE.trained_modules(fresh) == list(HEADS)
    torch.manual_seed(99)
    assert torch.equal(outputs(loaded(str(tmp_path / "backbone"), FIVE)), outputs(fresh))
    kept = {name: value for name, value in network.state_dict().items() if "layernorm" not in name}
    network.save_pretrained(tmp_path / "part", state_dict=kept)
    with pytest.raises(UserError, match="is no detector: it has no vit"):
        loaded(str(tmp_path / "part"))


# --- pixels ---


@each_family
def test_pixels_are_scaled_and_normalized_as_the_directory_says(places, name):
    pixels = pixels_of(ModelConfig(source=places[name]))
    assert (pixels.height, pixels.width, pixels.mean) == (32, 32, (0.5, 0.5, 0.5))
    from PIL import Image

    made = pixels(Image.new("RGB", (7, 90), (255, 0, 51)))
    assert made.shape == (3, 32, 32)
    assert made[:, 0, 0].tolist() == pytest.approx([1.0, -1.0, -0.6])


def test_shortest_edge_becomes_the_side_of_a_square(places, tmp_path):
    place = save_detector("yolos", tmp_path, size={"shortest_edge": 24, "longest_edge": 60}, do_normalize=False)
    assert pixels_of(ModelConfig(source=place)) == DetectionPixels(24, 24, (0.0,) * 3, (1.0,) * 3)
    values = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({**values, "size": {"max_height": 5, "max_width": 5}})
    )
    with pytest.raises(UserError, match="is no size"):
        pixels_of(ModelConfig(source=place))


def test_shipped_detectors_need_no_file():
    assert pixels_of(ModelConfig(source="cells-shapes-small")) == DetectionPixels(64, 64)
