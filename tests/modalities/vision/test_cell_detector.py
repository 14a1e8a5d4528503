"""The small detector of our own: where its cells are, what its layers do, and that it learns."""

import pytest
import torch

from fedcollm.config import ClientConfig
from fedcollm.data.sources.shapes import PLAIN, SHAPES, _scene
from fedcollm.modalities.vision.cell_detector import CellConfig, CellDetector, Layer, Merge, first_boxes
from fedcollm.modalities.vision.detection import DetectionTask
from fedcollm.modalities.vision.detection_pixels import DetectionPixels
from fedcollm.training.fine_tuning import evaluate, fit


def test_first_boxes_are_around_the_centers_of_the_cells_row_by_row():
    boxes = first_boxes()
    assert boxes.shape == (16, 4)
    assert boxes[:5].tolist() == [
        pytest.approx(place) for place in [[x, 0.125, 0.4, 0.4] for x in (0.125, 0.375, 0.625, 0.875)]
    ] + [pytest.approx([0.125, 0.375, 0.4, 0.4])]


def test_cells_answer_for_their_own_place_before_training():
    torch.manual_seed(0)
    network = CellDetector(CellConfig((8, 8, 8), (1, 1, 1), num_labels=3))
    answer = network(torch.zeros(2, 3, 64, 64))
    assert answer.logits.shape == (2, 16, 4)
    assert (answer.pred_boxes - first_boxes()).abs().max() < 0.25
    nearest = torch.cdist(answer.pred_boxes[0, :, :2], first_boxes()[:, :2]).argmin(1)
    assert nearest.tolist() == list(range(16))


def test_merged_positions_are_squares():
    merge = Merge(1, 4, 2)
    merge.linear.weight.data = torch.eye(4)
    merge.linear.bias.data.zero_()
    merge.norm = torch.nn.Identity()
    map = torch.arange(16.0).reshape(1, 4, 4, 1)
    assert merge(map).tolist() == [[[[0, 1, 4, 5], [2, 3, 6, 7]], [[8, 9, 12, 13], [10, 11, 14, 15]]]]


def test_layer_without_weights_of_its_outputs_changes_nothing_and_treats_cells_alike():
    torch.manual_seed(0)
    layer, queries = Layer(8), torch.randn(2, 5, 8)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(layer(queries[:, order]), layer(queries)[:, order])
    assert not torch.allclose(layer(queries)[:, 0], layer(queries[:, :1])[:, 0])  # the others are seen
    for part in (layer.output, layer.narrow):
        part.weight.data.zero_()
        part.bias.data.zero_()
    assert torch.equal(layer(queries), queries)


def test_detector_learns_a_few_scenes():
    torch.manual_seed(0)
    scenes = [_scene("plain", PLAIN[number % 2], number) for number in range(16)]
    task = DetectionTask("shapes", SHAPES, DetectionPixels(64, 64))
    network = CellDetector(CellConfig((16, 32, 48), (1, 1, 1), num_labels=5))
    before = evaluate(task, network, scenes, 16).value
    schedule = {"schedule": "linear", "warmup_ratio": 0.1, "max_grad_norm": 1.0}
    settings = ClientConfig(epochs=60, batch_size=8, learning_rate=3e-3, **schedule)
    fit(task, network, scenes, settings, 0)
    assert before < 0.1
    assert evaluate(task, network, scenes, 16).value > 0.5
