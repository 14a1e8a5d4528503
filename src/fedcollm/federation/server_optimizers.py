"""What the server does with the clients' mean change, its pseudo-gradient Δ.

Reddi et al., "Adaptive Federated Optimization", arXiv 2003.00295, Algorithm 2; FedAvgM is Hsu et al., arXiv 1909.06335.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from fedcollm.messages import Adapter

Kind = Literal["average", "fedavgm", "fedadam"]

#: Role in a checkpoint ("momentum", "second_moment") to running values, each shaped as the adapter; empty at the start.
OptimizerState = dict[str, Adapter]


@dataclass(frozen=True)
class ServerOptimizer:
    """A server optimizer.

    Attributes:
        kind: name of one of the functions below.
        rate: η.
        momentum: β of `fedavgm`, β₁ of `fedadam`.
        decay: β₂ of `fedadam`.
        tau: τ of `fedadam`.
    """

    kind: Kind = "average"
    learning_rate: float = 1.0
    momentum: float = 0.9
    decay: float = 0.99
    tau: float = 1e-3

    def __call__(self, before: Adapter, mean: Adapter, memory: OptimizerState) -> tuple[Adapter, OptimizerState]:
        """The next global adapter and the memory beside it.

        Args:
            before: θ, as it was broadcast.
            mean: mean of the clients' adapters; Δ = mean - θ.
            memory: of the last round.
        """
        return _STEPS[self.kind](self, before, mean, memory)


#: FedAvg.
PLAIN = ServerOptimizer()


def average(
    step: ServerOptimizer, before: Adapter, mean: Adapter, memory: OptimizerState
) -> tuple[Adapter, OptimizerState]:
    """θ + η Δ; with η = 1 the mean itself, bit for bit (FedAvg)."""
    if step.learning_rate == 1:
        return mean, memory
    return {name: torch.lerp(before[name], mean[name], step.learning_rate) for name in mean}, memory


def fedavgm(
    step: ServerOptimizer, before: Adapter, mean: Adapter, memory: OptimizerState
) -> tuple[Adapter, OptimizerState]:
    """M ← β m + Δ; θ + η m (arXiv 1909.06335, section 4.3)."""
    momentum = _running(memory, "momentum", mean)
    momentum = {name: step.momentum * momentum[name] + (mean[name] - before[name]) for name in mean}
    return {name: before[name] + step.learning_rate * momentum[name] for name in mean}, {"momentum": momentum}


def fedadam(
    step: ServerOptimizer, before: Adapter, mean: Adapter, memory: OptimizerState
) -> tuple[Adapter, OptimizerState]:
    """M ← β₁ m + (1 - β₁) Δ; v ← β₂ v + (1 - β₂) Δ²; θ + η m / (√v + τ), without correction of bias, as the paper's."""
    change = {name: mean[name] - before[name] for name in mean}
    momentum, second = _running(memory, "momentum", mean), _running(memory, "second_moment", mean)
    momentum = {name: torch.lerp(change[name], momentum[name], step.momentum) for name in mean}
    second = {name: torch.lerp(change[name].square(), second[name], step.decay) for name in mean}
    moved = {
        name: before[name] + step.learning_rate * momentum[name] / (second[name].sqrt() + step.tau) for name in mean
    }
    return moved, {"momentum": momentum, "second_moment": second}


_STEPS: Mapping[Kind, Callable[[ServerOptimizer, Adapter, Adapter, OptimizerState], tuple[Adapter, OptimizerState]]] = {
    "average": average,
    "fedavgm": fedavgm,
    "fedadam": fedadam,
}


def _running(memory: OptimizerState, name: str, like: Adapter) -> Adapter:
    return memory.get(name) or {key: torch.zeros_like(tensor) for key, tensor in like.items()}
