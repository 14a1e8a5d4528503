"""Two steps of each server optimizer by hand; Δ is the mean of the clients less what was broadcast."""

import functools

import pytest
import torch

from fedcollm.config import ServerOptimizerConfig
from fedcollm.federation.server_optimizers import apply_server_optimizer

BEFORE, MEAN = {"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([1.5, 1.0])}  # Δ = (1/2, -1)


def close(adapter: dict[str, torch.Tensor], *values: float) -> bool:
    return adapter.keys() == {"a"} and adapter["a"].tolist() == pytest.approx(values, abs=1e-6)


def test_plain_step_is_the_mean_itself_and_keeps_no_state():
    adapter, state = apply_server_optimizer(ServerOptimizerConfig(), BEFORE, MEAN, {})
    assert adapter is MEAN
    assert state == {}


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(0.5, (1.25, 1.5)), (2.0, (2.0, 0.0))],  # θ + η (1/2, -1)
)
def test_average_goes_a_share_of_the_way_or_beyond(rate, expected):
    adapter, state = apply_server_optimizer(ServerOptimizerConfig(learning_rate=rate), BEFORE, MEAN, {})
    assert close(adapter, *expected)
    assert state == {}


def test_momentum_by_hand():
    step = functools.partial(
        apply_server_optimizer, ServerOptimizerConfig(kind="fedavgm", learning_rate=2.0, momentum=0.5)
    )
    adapter, state = step(BEFORE, MEAN, {})
    assert state.keys() == {"momentum"}
    assert close(state["momentum"], 0.5, -1.0)  # Δ
    assert close(adapter, 2.0, 0.0)  # θ + 2 m
    # Δ = (1/2, 1/4), m = 1/2 (1/2, -1) + Δ = (3/4, -1/4), θ + 2 m = (7/2, -1/2)
    adapter, state = step(adapter, {"a": torch.tensor([2.5, 0.25])}, state)
    assert close(state["momentum"], 0.75, -0.25)
    assert close(adapter, 3.5, -0.5)


def test_adam_by_hand():
    step = functools.partial(
        apply_server_optimizer,
        ServerOptimizerConfig(kind="fedadam", learning_rate=1.0, momentum=0.5, decay=0.75, tau=0.25),
    )
    adapter, state = step(BEFORE, MEAN, {})
    # m = 1/2 Δ, v = 1/4 Δ² = (1/16, 1/4); m / (√v + τ) = (1/4 / (1/4 + 1/4), -1/2 / (1/2 + 1/4)) = (1/2, -2/3)
    assert state.keys() == {"momentum", "second_moment"}
    assert close(state["momentum"], 0.25, -0.5)
    assert close(state["second_moment"], 0.0625, 0.25)
    assert close(adapter, 1.5, 1.3333333)
    # Δ = (0, 1/2): m = (1/8, -1/4 + 1/4), v = (3/64, 3/16 + 1/16); 1/8 / (√(3/64) + 1/4) = 0.2679492
    adapter, state = step(adapter, {"a": adapter["a"] + torch.tensor([0.0, 0.5])}, state)
    assert close(state["momentum"], 0.125, 0.0)
    assert close(state["second_moment"], 0.046875, 0.25)
    assert close(adapter, 1.7679492, 1.3333333)


@pytest.mark.parametrize("kind", ["fedavgm", "fedadam"])
def test_step_changes_nothing_that_it_is_given(kind):
    state = {"momentum": {"a": torch.tensor([1.0, 1.0])}, "second_moment": {"a": torch.tensor([4.0, 4.0])}}
    before, mean = {"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([1.5, 1.0])}
    apply_server_optimizer(ServerOptimizerConfig(kind=kind), before, mean, state)
    assert close(before, 1.0, 2.0)
    assert close(mean, 1.5, 1.0)
    assert close(state["momentum"], 1.0, 1.0)
    assert close(state["second_moment"], 4.0, 4.0)


@pytest.mark.parametrize("kind", ["fedavgm", "fedadam"])
def test_momentum_goes_on_where_the_clients_stand_still(kind):
    settings = ServerOptimizerConfig(kind=kind, learning_rate=0.1, momentum=0.9)
    step = functools.partial(apply_server_optimizer, settings)
    adapter, state = step(BEFORE, MEAN, {})
    further, _ = step(adapter, adapter, state)
    assert further["a"][0] > adapter["a"][0] > BEFORE["a"][0]
    assert further["a"][1] < adapter["a"][1] < BEFORE["a"][1]
