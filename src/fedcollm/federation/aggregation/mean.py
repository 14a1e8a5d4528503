"""Means of clients' adapters, made of one adapter after the other."""

import torch
from torch import Tensor

from fedcollm.federation.upload_format import component_axis
from fedcollm.messages import Adapter


class WeightedMean:
    """Σ w_k θ_k / Σ w_k, summed in float64, in the dtype of what is added (McMahan et al., arXiv 1602.05629)."""

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._total = 0.0

    def add(self, adapter: Adapter, weight: float) -> None:
        """Add one client's adapter."""
        for name, tensor in adapter.items():
            self._dtypes[name] = tensor.dtype
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(tensor, dtype=torch.float64)
            self._sums[name].add_(tensor, alpha=weight)
        self._total += weight

    def value(self) -> Adapter:
        """Return the mean of all that were added."""
        return {name: (value / self._total).to(self._dtypes[name]) for name, value in self._sums.items()}


class ComponentMean:
    """The same for clients of different ranks: of every component of LoRA over the clients that have it.

    Adapters padded with zeros, as in the plainest form of HetLoRA (Cho et al., arXiv 2401.06432), would draw what few
    clients have towards zero, round by round. HetLoRA's own remedy is a weight by the norm of each client's B A; a mean
    over those that have the component needs none. A component that no client of the round has stays as it was.

    Args:
        theta: θ, of the full rank, as it was sent.
    """

    def __init__(self, theta: Adapter):
        self._theta = theta
        self._sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in theta.items()}
        self._weights = {name: torch.zeros(_along(tensor, name), dtype=torch.float64) for name, tensor in theta.items()}

    def add(self, adapter: Adapter, weight: float) -> None:
        """Count the components in that a client sent, the first ones."""
        for name, tensor in adapter.items():
            axis = component_axis(name) or 0
            self._sums[name].narrow(axis, 0, tensor.shape[axis]).add_(tensor, alpha=weight)
            self._weights[name].narrow(axis, 0, tensor.shape[axis]).add_(weight)

    def value(self) -> Adapter:
        """Return the mean of all that were added."""
        return {
            name: torch.where(self._weights[name] > 0, total / self._weights[name], self._theta[name]).to(
                self._theta[name].dtype
            )
            for name, total in self._sums.items()
        }


def _along(tensor: Tensor, name: str) -> list[int]:
    """The shape of one number a component, to be broadcast over a tensor."""
    axis = component_axis(name) or 0
    return [size if i == axis else 1 for i, size in enumerate(tensor.shape)]
