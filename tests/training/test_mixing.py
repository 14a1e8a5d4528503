"""Example-level privacy refuses a model in which one example changes what is computed of another."""

import types

import pytest
import torch
from tests.parties import add_adapter, fit_privately
from torch import Tensor, nn
from torch.nn import functional

from fedcollm.errors import UserError
from fedcollm.modalities.vision.task import ImageExample, ImageTask
from fedcollm.models.adapters import read_adapter, write_adapter
from fedcollm.privacy.accounting import ExamplePrivacy
from fedcollm.training.mixing import check_apart

TASK = ImageTask("toy", tuple("0123456789"))


class Centered(nn.Module):
    """Of no class that anybody knows, and without buffers."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0) if self.training else x


class Counting(nn.Module):
    """Each example is computed by itself, but the model remembers them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(32))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += x.detach().mean(dim=0)
        return x


class Dropping(nn.Module):
    """Dropout and stochastic depth without a module of torch."""

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(x, 0.5, self.training)
        return x * (0.9 + torch.rand(len(x), 1)).floor() / 0.9 if self.training else x


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training else x


class Net(nn.Module):
    def __init__(self, middle: nn.Module):
        super().__init__()
        self.one, self.middle, self.two = nn.Linear(64, 32), middle, nn.Linear(32, 10)

    def forward(self, pixel_values: Tensor, **_: object) -> object:
        return types.SimpleNamespace(
            logits=self.two(torch.relu(self.middle(self.one(pixel_values.float().flatten(1)))))
        )


def made(middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    model = add_adapter(Net(middle), rank=2, seed=1, causal_lm=False, targets=["one", "two"])
    write_adapter(model, {name: torch.randn_like(tensor) / 4 for name, tensor in read_adapter(model).items()})
    return model


def images(count: int) -> list[ImageExample]:
    generator = torch.Generator().manual_seed(3)
    return [ImageExample(str(i), torch.rand(1, 8, 8, generator=generator), i % 10) for i in range(count)]


@pytest.mark.parametrize("count", [2, 6])
@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (lambda: nn.BatchNorm1d(32), "keeps statistics"),
        (lambda: nn.BatchNorm1d(32, track_running_stats=False), "mixes the examples"),
        (Centered, "mixes the examples"),
        (Counting, "keeps statistics"),
        (lambda: nn.Sequential(Dropping(), Centered()), "mixes the examples"),
    ],
)
def test_model_that_mixes_examples_is_refused_untrained_and_unchanged(middle, reason, count):
    model = made(middle())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=f"computes each example by itself, and in training it {reason}"):
        fit_privately(TASK, model, images(count), privacy=ExamplePrivacy(0.1, 1.0, 1e-5, 1.0, steps=1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training


@pytest.mark.parametrize(
    "middle",
    [nn.Identity, lambda: nn.LayerNorm(32), lambda: nn.Dropout(0.5), Dropping, Noisy, lambda: nn.GroupNorm(4, 32)],
)
def test_model_that_keeps_examples_apart_passes(middle):
    check_apart(TASK, made(middle()), images(6), "training")


def test_examples_that_cannot_be_computed_are_left_out():
    bad = ImageExample("bad", torch.rand(1, 3, 3), 1)
    check_apart(TASK, made(nn.Identity()), [bad, *images(3)], "training")
    check_apart(TASK, made(Centered()), [bad], "training")
    with pytest.raises(UserError, match="mixes"):
        check_apart(TASK, made(Centered()), [bad, *images(3)], "training")
