"""Distillation of continuous outputs, and weighted rows, on values worked by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import tensor

from fedcollm.config import DistillationConfig
from fedcollm.modalities.base import UNLABELLED, Rows, Values
from fedcollm.training.distillation import Losses, mutual_losses
from fedcollm.training.divergences import distance, divergence

LN3 = math.log(3)
ZERO = torch.zeros(())

#: Two rows of two classes: p_f = (3/4, 1/4) and (1/2, 1/2); p_g = (1/2, 1/2) twice. So KL(p_f ‖ p_g) is
#: 3/4 ln(3/2) + 1/4 ln(1/2) in the first row, KL(p_g ‖ p_f) is ln(2/√3), and both are 0 in the second.
ROWS = Rows(torch.zeros(2, 2), tensor([[LN3, 0], [0, 0]]), *[torch.full((2,), UNLABELLED)] * 2)
FORWARD, BACKWARD = 0.75 * math.log(1.5) + 0.25 * math.log(0.5), math.log(2 / math.sqrt(3))

#: L1 distances of 3 in the first row and of 1 in the second.
VALUES = Values(tensor([[1.0, 0], [0, 0]]), tensor([[0.0, 2], [1, 0]]), tensor([1.0, 0]), tensor([0.25, 0.75]))


def losses(rows: Rows, **settings) -> Losses:
    return mutual_losses(ZERO, ZERO, rows, DistillationConfig(**{"weight": 2.0, "llm_weight": 0.5, **settings}))


def test_weighted_rows_are_a_weighted_mean():
    # weights 3 and 1: three quarters of the first row
    assert divergence(ROWS.llm, ROWS.slm, weights=tensor([3.0, 1])).item() == pytest.approx(0.75 * FORWARD)
    weighted = losses(replace(ROWS, weights=tensor([3.0, 1])))
    assert weighted.kl.item() == pytest.approx(0.75 * FORWARD)
    assert weighted.total.item() == pytest.approx(0.75 * (2 * FORWARD + 0.5 * BACKWARD))
    assert divergence(ROWS.llm, ROWS.slm, weights=torch.zeros(2)).item() == 0


def test_equal_weights_are_the_plain_mean():
    plain = losses(ROWS)
    assert plain.kl.item() == pytest.approx(FORWARD / 2)
    assert losses(replace(ROWS, weights=torch.ones(2))).kl.item() == pytest.approx(plain.kl.item())


def test_distance_of_values_by_hand():
    # the LLM teaches: (1/4 · 3 + 3/4 · 1) / 1; the SLM teaches: 3 alone
    assert distance(VALUES.llm, VALUES.slm, VALUES.llm_weights).item() == pytest.approx(1.5)
    assert distance(VALUES.slm, VALUES.llm, VALUES.slm_weights).item() == 3
    assert distance(VALUES.slm, VALUES.llm, torch.zeros(2)).item() == 0
    taught = tensor([False, True])
    assert distance(VALUES.llm, VALUES.slm, VALUES.llm_weights, taught).item() == pytest.approx(0.75)


def test_values_are_added_to_the_divergence_of_each_direction():
    both = losses(replace(ROWS, values=VALUES))
    assert both.kl.item() == pytest.approx(FORWARD / 2 + 1.5)
    assert both.total.item() == pytest.approx(2 * (FORWARD / 2 + 1.5) + 0.5 * (BACKWARD / 2 + 3))


def test_teacher_gets_no_gradient_from_values():
    slm, llm = VALUES.slm.clone().requires_grad_(), VALUES.llm.clone().requires_grad_()
    rows = replace(ROWS, values=Values(slm, llm, VALUES.slm_weights, VALUES.llm_weights))
    losses(rows, llm_weight=0.0).total.backward()
    # 2 · weight · sign(slm - llm)
    assert slm.grad.tolist() == [[0.5, -0.5], [-1.5, 0]]
    assert llm.grad is None
    slm.grad = None
    losses(rows, weight=0.0).total.backward()
    assert llm.grad.tolist() == [[-0.5, 0.5], [0, 0]]
    assert slm.grad is None


def test_values_are_taught_where_their_rows_are():
    """The LLM is surer in the first row; in the second, both are equally unsure, and nobody is taught."""
    both = losses(replace(ROWS, values=VALUES), teach_where_better=True)
    assert both.kl.item() == pytest.approx(FORWARD / 2 + 0.25 * 3)
    assert both.total.item() == pytest.approx(2 * (FORWARD / 2 + 0.75))
