"""What networks keep of an example, counted by hand, and beside the memory that training took."""

import torch
from tests.modalities.vision.tiny_classifiers import save_classifier
from torch import nn

from fedcollm.config import ModelConfig
from fedcollm.modalities.vision.classifiers import ClassifierModels
from fedcollm.runs.activations import Activations, measure
from fedcollm.runs.outlines import outline


class Two(nn.Module):
    """A frozen convolution with an adapter's pair, and a ReLU."""

    def __init__(self):
        super().__init__()
        self.base = nn.Conv2d(3, 4, 3, padding=1, bias=False).requires_grad_(False)
        self.a = nn.Conv2d(4, 2, 1, bias=False)
        self.b = nn.Conv2d(2, 4, 1, bias=False)

    def forward(self, x):
        return torch.relu(self.b(self.a(self.base(x))))


def test_kept_is_what_the_backward_pass_needs():
    with torch.device("meta"):
        found = measure(Two(), {"x": torch.empty(1, 3, 8, 8)})
    # base(x), the input of a: 4 * 64 values; that of b: 2 * 64; the output of ReLU: 4 * 64
    # nothing is kept of x, whose layer is frozen; passing is x and base(x): 3 * 64 + 4 * 64
    assert found == Activations(kept=4 * 64 * (4 + 2 + 4), passing=4 * 64 * 7)
    assert (found.kept, found.passing) == (2560, 1792)
    assert (found.training, found.scoring) == (2560 * 1.3 + 1792, 2560 * 0.2 + 1792)


def test_outlines_of_image_classifiers_are_measured(tmp_path):
    models = ClassifierModels(["a", "b", "c", "d", "e"])
    sides = {}
    for side in (32, 64):
        source = save_classifier("resnet", tmp_path / str(side), size={"height": side, "width": side})
        found = outline(ModelConfig(source=source, layers=None, heal=None), models).activations
        assert found is not None
        sides[side] = found
    # almost all layers have four times as many values of an image that is twice as large
    assert 3.5 < sides[64].kept / sides[32].kept <= 4
