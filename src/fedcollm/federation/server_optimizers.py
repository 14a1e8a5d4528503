"""Server optimizers: how the server applies the clients' mean change, its pseudo-gradient Δ, to the global adapter.

Source: Reddi et al., "Adaptive Federated Optimization", arXiv 2003.00295, Algorithm 2. FedAvgM is from Hsu et al.,
arXiv 1909.06335.

Each optimizer is a row of `SERVER_OPTIMIZERS` in `config/choices.py`, under the same name.
"""

from collections.abc import Callable, Mapping

import torch

from fedcollm.config import ServerOptimizerConfig
from fedcollm.messages import Adapter

#: The running values of an optimizer by their name in a checkpoint (`momentum`, `second_moment`), each in the shapes of
#: the adapter; empty before the first round.
OptimizerState = dict[str, Adapter]


def apply_server_optimizer(
    settings: ServerOptimizerConfig, before: Adapter, mean: Adapter, state: OptimizerState
) -> tuple[Adapter, OptimizerState]:
    """Return the next global adapter and the optimizer's next state.

    Args:
        settings: name and hyperparameters of the optimizer.
        before: θ, as it was broadcast.
        mean: the mean of the clients' adapters; Δ = mean - θ.
        state: the optimizer's state after the previous round.
    """
    return OPTIMIZERS[settings.kind](settings, before, mean, state)


def average(
    settings: ServerOptimizerConfig, before: Adapter, mean: Adapter, state: OptimizerState
) -> tuple[Adapter, OptimizerState]:
    """Return θ + η Δ. With η = 1 this is the mean itself, bit for bit (FedAvg)."""
    if settings.learning_rate == 1:
        return mean, state
    return {name: torch.lerp(before[name], mean[name], settings.learning_rate) for name in mean}, state


def fedavgm(
    settings: ServerOptimizerConfig, before: Adapter, mean: Adapter, state: OptimizerState
) -> tuple[Adapter, OptimizerState]:
    """Return θ + η m, where m ← β m + Δ (arXiv 1909.06335, section 4.3)."""
    momentum = _running(state, "momentum", mean)
    momentum = {name: settings.momentum * momentum[name] + (mean[name] - before[name]) for name in mean}
    return {name: before[name] + settings.learning_rate * momentum[name] for name in mean}, {"momentum": momentum}


def fedadam(
    settings: ServerOptimizerConfig, before: Adapter, mean: Adapter, state: OptimizerState
) -> tuple[Adapter, OptimizerState]:
    """Return θ + η m / (√v + τ), where m ← β₁ m + (1 - β₁) Δ and v ← β₂ v + (1 - β₂) Δ².

    As in the paper, there is no bias correction.
    """
    change = {name: mean[name] - before[name] for name in mean}
    momentum, second = _running(state, "momentum", mean), _running(state, "second_moment", mean)
    momentum = {name: torch.lerp(change[name], momentum[name], settings.momentum) for name in mean}
    second = {name: torch.lerp(change[name].square(), second[name], settings.decay) for name in mean}
    moved = {
        name: before[name] + settings.learning_rate * momentum[name] / (second[name].sqrt() + settings.tau)
        for name in mean
    }
    return moved, {"momentum": momentum, "second_moment": second}


OPTIMIZERS: Mapping[
    str, Callable[[ServerOptimizerConfig, Adapter, Adapter, OptimizerState], tuple[Adapter, OptimizerState]]
] = {
    "average": average,
    "fedavgm": fedavgm,
    "fedadam": fedadam,
}


def _running(state: OptimizerState, name: str, like: Adapter) -> Adapter:
    """Return a running value of the state; before the first round, zeros in the shapes of an adapter."""
    return state.get(name) or {key: torch.zeros_like(tensor) for key, tensor in like.items()}
