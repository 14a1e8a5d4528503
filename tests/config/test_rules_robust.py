"""Combinations with robust losses and a gated distillation that are refused, and those that are not."""

import pytest

from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.config.rules import refusals
from fedcollm.config.rules_robust import robust_losses

BOXES = {"task.name": "shapes"}
DP_SGD = {
    "federation.aggregation": "uniform",
    "federation.privacy": {"level": "example", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5, "sampling_rate": 1},
}
GATE = {"server.distillation.gate": "reliability"}
LOSS, TRIM = {"client.loss": "symmetric"}, {"client.loss_trim": 0.25}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (LOSS | BOXES, "client.loss symmetric needs a cross-entropy .* Set client.loss: cross_entropy"),
        (TRIM | BOXES, "client.loss_trim 0.25 needs a cross-entropy .* Set client.loss_trim: 0"),
        (LOSS | DP_SGD, "DP-SGD, .* client.loss is symmetric. Set client.loss: cross_entropy, or level: client"),
        (TRIM | DP_SGD, "DP-SGD, .* client.loss_trim is 0.25"),
        (
            TRIM | {"client.micro_batch_size": 4},
            "loss_trim 0.25 leaves out .* client.micro_batch_size 4 computes a batch in parts",
        ),
        ({"task.name": "digits", "client.loss_trim": 0.05}, "loss_trim 0.05 of the 16 labels .* less than one label"),
        (LOSS | {"client.loss_weights": [0, 0]}, r"client.loss_weights \[0, 0\] leave no loss"),
        (GATE | BOXES, "server.distillation.gate reliability needs choices, but .* boxes.* Set .*gate: none"),
        (GATE | {"task.public_size": 0, "task.unlabelled_size": 8}, "gate .* task.public_size is 0. Raise it"),
    ],
)
def test_what_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        changed(RunConfig(), values)


@pytest.mark.parametrize(
    "values",
    [
        BOXES,
        DP_SGD,
        LOSS,
        GATE,
        TRIM | {"client.micro_batch_size": 16},
        LOSS | BOXES | {"federation.participants": []},
        GATE | BOXES | {"server.epochs": 0},
    ],
)
def test_what_is_not(values):
    assert refusals(changed(RunConfig(), values)) == []
    assert list(robust_losses(changed(RunConfig(), values))) == []
