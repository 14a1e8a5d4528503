"""Means of the clients' adapters, to which one adapter is added after the other."""

import torch
from torch import Tensor

from fedcollm.federation.upload_format import component_axis
from fedcollm.messages import Adapter


class WeightedMean:
    """The weighted mean Σ w_k θ_k / Σ w_k (McMahan et al., arXiv 1602.05629).

    It is summed in float64 and returned in the dtypes of the adapters.
    """

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._total: float = 0.0

    def add(self, adapter: Adapter, weight: float) -> None:
        """Add one client's adapter."""
        for name, tensor in adapter.items():
            self._dtypes[name] = tensor.dtype
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(tensor, dtype=torch.float64)
            self._sums[name].add_(tensor, alpha=weight)
        self._total += weight

    def value(self) -> Adapter:
        """Return the mean of all adapters that were added."""
        return {name: (value / self._total).to(self._dtypes[name]) for name, value in self._sums.items()}


class ComponentMean:
    """The weighted mean for clients of different ranks: each LoRA component is averaged over the clients that have it.

    A component that no client of the round has stays as it was. The simplest form of HetLoRA (Cho et al., arXiv
    2401.06432) pads adapters with zeros instead, which shrinks the components that few clients have, round by round.
    HetLoRA itself counters that by weighting each client by the norm of its B A. A mean over those clients that have
    the component does not need such weights.

    Args:
        theta: θ, of the full rank, as it was broadcast.
    """

    def __init__(self, theta: Adapter):
        self._theta = theta
        self._sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in theta.items()}
        self._weights = {name: torch.zeros(_along(tensor, name), dtype=torch.float64) for name, tensor in theta.items()}

    def add(self, adapter: Adapter, weight: float) -> None:
        """Add one client's adapter, which may have only the first components."""
        for name, tensor in adapter.items():
            axis = component_axis(name) or 0
            self._sums[name].narrow(axis, 0, tensor.shape[axis]).add_(tensor, alpha=weight)
            self._weights[name].narrow(axis, 0, tensor.shape[axis]).add_(weight)

    def value(self) -> Adapter:
        """Return the mean of all adapters that were added."""
        return {
            name: torch.where(self._weights[name] > 0, total / self._weights[name], self._theta[name]).to(
                self._theta[name].dtype
            )
            for name, total in self._sums.items()
        }


def _along(tensor: Tensor, name: str) -> list[int]:
    """Return the shape of one number per component, which can be broadcast over the tensor."""
    axis = component_axis(name) or 0
    return [size if i == axis else 1 for i, size in enumerate(tensor.shape)]
