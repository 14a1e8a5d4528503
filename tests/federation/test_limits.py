"""What a client trains and what it lets out, at the limits themselves."""

import math

import pytest
import torch

from fedcollm.config import FederationConfig
from fedcollm.errors import NonFiniteError, RefusalError, UserError
from fedcollm.federation.limits import Limits
from fedcollm.federation.secagg.fixed_point import RangeError
from fedcollm.messages import TrainRequest

CLIENT = {"level": "client", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}
EXAMPLE = {**CLIENT, "level": "example", "sampling_rate": 0.1}
THETA = {"w": torch.tensor([3.0, -4.0])}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, Limits(1000.0, 10_000.0, 10_000.0, 1000.0, None)),
        ({"secure_aggregation": True, "max_loss": None}, Limits(1000.0, 10_000.0, None, 1000.0, 1.0)),
        ({"secure_aggregation": {"simulate_quantization": True}}, Limits(1000.0, 10_000.0, 10_000.0, 1000.0, 1.0)),
        ({"clip_norm": 2.0}, Limits(1000.0, 10_000.0, 10_000.0, 1000.0, None, 2.0)),
        ({"privacy": EXAMPLE}, Limits(1000.0, 10_000.0, None, 1000.0, None)),
        ({"privacy": CLIENT, "secure_aggregation": True}, Limits(1000.0, 10_000.0, 10_000.0, None, None)),
    ],
)
def test_limits_are_those_of_the_agreed_configuration(values, expected):
    assert Limits.of(FederationConfig.model_validate(values)) == expected


def test_longer_change_keeps_its_direction():
    tuned = {"w": torch.tensor([6.0, 0.0])}  # by 3 and 4, and 5 together
    assert Limits(clip_norm=5.0).clipped(tuned, THETA) is tuned
    assert Limits().clipped(tuned, THETA) is tuned
    assert Limits(clip_norm=2.5).clipped(tuned, THETA)["w"].tolist() == [4.5, -2.0]


def test_adapter_at_the_limit_is_trained_and_above_it_refused():
    Limits(adapter_value=4.0, adapter_norm=5.0).check_request(TrainRequest(1, THETA))
    with pytest.raises(RefusalError, match=r"w of the global adapter has a value of 4, more than .*value 3\.9"):
        Limits(adapter_value=3.9).check_request(TrainRequest(1, THETA))
    with pytest.raises(RefusalError, match=r"L2 norm of 5, more than .*norm 4\.9"):
        Limits(adapter_norm=4.9).check_request(TrainRequest(1, THETA))
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(RefusalError, match="w of the global adapter"):
            Limits(adapter_value=3.9).check_request(TrainRequest(1, {"w": torch.tensor([0.0, value])}))


def test_loss_before_training_at_the_limit_and_above():
    Limits(start_loss=2.0).check_start("here", 2.0)
    for loss, error in ((2.1, UserError), (math.nan, NonFiniteError), (math.inf, NonFiniteError)):
        with pytest.raises(error, match="here: "):
            Limits(start_loss=2.0).check_start("here", loss)


def test_change_at_the_limits_and_above():
    tuned = {"w": torch.tensor([6.0, 0.0])}  # by 3 and 4, and 5 together
    Limits(update_norm=5.0, value_range=4.0).check_end("here", 1e6, tuned, THETA)
    Limits().check_end("here", None, tuned, THETA)
    for limits, error in ((Limits(update_norm=4.9), UserError), (Limits(value_range=3.9), RangeError)):
        with pytest.raises(error):
            limits.check_end("here", 0.0, tuned, THETA)
    for loss in (-0.1, 1.1e6, math.nan):
        with pytest.raises(UserError, match="here: the mean loss is"):
            Limits().check_end("here", loss, tuned, THETA)
