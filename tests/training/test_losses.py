"""Losses that are robust against wrong labels, by hand, and what a client does with them."""

import math

import pytest
import torch
from tests.parties import fit
from tests.training.test_fine_tuning import IMAGES, Scaled, image

from fedcollm.config import ClientConfig
from fedcollm.config.choices import LOSSES as CHOICES
from fedcollm.errors import UserError
from fedcollm.modalities.base import UNLABELLED, Modality, cross_entropy
from fedcollm.training.losses import LOSSES, check_loss_fits, loss_of_rows

#: p of the label: 1/2 and 1/4; the third row has no label.
LOGITS = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [5.0, -5.0]])
TARGETS = torch.tensor([1, 1, UNLABELLED])


def loss(logits=LOGITS, targets=TARGETS, **settings) -> float:
    return loss_of_rows(logits, targets, ClientConfig(**settings)).item()


def test_every_choice_has_a_loss_of_its_name():
    assert LOSSES.keys() == CHOICES.keys()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 1.0397208),  # (ln 2 + ln 4) / 2
        ({"loss": "generalized", "loss_q": 1.0}, 0.625),  # (1/2 + 3/4) / 2
        ({"loss": "generalized", "loss_q": 0.5}, 0.7928932),  # 2 (1 - √½) = 0.5857864 and 2 (1 - ½) = 1
        ({"loss": "generalized", "loss_q": 1e-6}, 1.0397208),
        ({"loss": "generalized", "loss_q": 1e-300}, 1.0397208),  # as q = 0, which is the cross-entropy
        ({"loss": "symmetric", "loss_weights": (1.0, 0.0)}, 1.0397208),
        ({"loss": "symmetric", "loss_weights": (0.0, 1.0)}, 2.5),  # 4 · 1/2 and 4 · 3/4
        ({"loss": "symmetric"}, 2.6039721),  # 0.1 · 1.0397208 + 2.5
        ({"loss_trim": 0.5}, 0.6931472),  # the second row has the larger loss
        ({"loss_trim": 0.4}, 1.0397208),  # of two rows, that is none
        ({"loss": "generalized", "loss_q": 1.0, "loss_trim": 0.5}, 0.5),
    ],
)
def test_losses_by_hand(settings, expected):
    assert loss(**settings) == pytest.approx(expected, abs=1e-6)


def test_plain_loss_of_rows_is_the_cross_entropy_of_the_modality():
    assert loss() == pytest.approx(cross_entropy(LOGITS, TARGETS).item(), abs=1e-7)


@pytest.mark.parametrize(
    ("settings", "slope"),
    [  # the gradient of cross-entropy in the label's logit is p - 1 = -3/4
        ({}, -0.75),
        ({"loss": "generalized", "loss_q": 0.5}, -0.375),  # times √¼
        ({"loss": "symmetric", "loss_weights": (1.0, 1.0)}, -1.5),  # 4 p (1 - p) = 3/4 more
    ],
)
def test_gradient_by_hand(settings, slope):
    logits = LOGITS[1:2].clone().requires_grad_()
    loss_of_rows(logits, torch.tensor([1]), ClientConfig(**settings)).backward()
    assert logits.grad[0, 1].item() == pytest.approx(slope, abs=1e-6)


def test_row_that_is_left_out_has_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    loss_of_rows(logits, TARGETS, ClientConfig(loss_trim=0.5)).backward()
    assert logits.grad.abs().sum(1).gt(0).tolist() == [True, False, False]


@pytest.mark.parametrize("name", LOSSES)
def test_no_label_and_an_impossible_one(name):
    logits = torch.tensor([[0.0, -200.0]], requires_grad=True)
    none = loss_of_rows(logits, torch.tensor([UNLABELLED]), ClientConfig(loss=name, loss_trim=0.5))
    none.backward()
    assert none.item() == 0
    assert torch.equal(logits.grad, torch.zeros(1, 2))
    found = loss_of_rows(logits, torch.tensor([1]), ClientConfig(loss=name))
    found.backward()
    assert math.isfinite(found.item())
    assert logits.grad.isfinite().all()


def test_client_trains_with_its_loss_and_reports_it():
    # two images [1, 0]: one is labelled a; the other is labelled b, wrongly
    examples = [image(1.0, 0.0, 0), image(1.0, 0.0, 1)]
    p = 1 / (1 + math.exp(-1))
    losses = {}
    for name, settings in {
        "plain": {},
        "mae": {"loss": "generalized", "loss_q": 1.0},
        "trim": {"loss_trim": 0.5},
    }.items():
        model = Scaled()
        losses[name] = fit(IMAGES, model, examples, epochs=1, batch_size=2, learning_rate=0.1, seed=0, **settings)
        losses[name, "weight"] = model.weight.item()
    assert losses["plain"] == pytest.approx((-math.log(p) - math.log(1 - p)) / 2, abs=1e-6)
    assert losses["mae"] == pytest.approx(0.5, abs=1e-6)
    assert losses["trim"] == pytest.approx(-math.log(p), abs=1e-6)
    assert losses["plain", "weight"] < 1 < losses["trim", "weight"]


class _Own(Modality):
    """A modality with a loss of its own."""

    name = "mine"
    collate = load_model = logits = score = None

    def loss(self, logits, batch):
        return logits.sum()


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"loss": "symmetric"}, "client.loss symmetric"), ({"loss_trim": 0.2}, "client.loss_trim 0.2")],
)
def test_modality_with_a_loss_of_its_own_takes_no_other(settings, key):
    with pytest.raises(UserError, match=f"{key} needs .* mine has a loss of its own"):
        check_loss_fits(_Own(), ClientConfig(**settings))
    check_loss_fits(_Own(), ClientConfig())
    check_loss_fits(IMAGES, ClientConfig(**settings))
