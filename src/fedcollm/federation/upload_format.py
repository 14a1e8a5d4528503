"""The form in which a client sends its adapter θ_k, and in which the server expects it.

Clients may have adapters of different ranks (HetLoRA, Cho et al., arXiv 2401.06432; FlexLoRA, Bai et al., arXiv
2402.11505). A client of rank r_k has the first r_k components of θ: the first rows of every A and the first columns of
every B. All clients of a process share one model of the full rank, in which such a client sets the other components to
zero. If both a row of A and the corresponding column of B are zero, their gradients are zero too, and AdamW without
weight decay leaves them at zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedcollm.errors import UserError
from fedcollm.federation.quantization import quantized, quantized_form, restored
from fedcollm.messages import Adapter

_AXES = {"lora_A": 0, "lora_B": 1}


@dataclass(frozen=True)
class UploadFormat:
    """The form in which a client sends its adapter.

    Attributes:
        dtype: dtype that the values are rounded to; None sends them as they were trained.
        rank: r_k, the number of LoRA components that the client has; None if it has all.
        bits: 8 or 4 if only the change of θ is sent, in so many bits per value; None otherwise.
    """

    dtype: torch.dtype | None = None
    rank: int | None = None
    bits: int | None = None

    def part(self, adapter: Adapter) -> Adapter:
        """Return the client's components of an adapter, as views."""
        return adapter if self.rank is None else first(adapter, self.rank)

    def pack(self, adapter: Adapter) -> Adapter:
        """Return the client's components of its adapter in the dtype in which it sends them.

        Raises:
            UserError: a value is too large for the dtype; the message names its tensor.
        """
        part = self.part(adapter)
        return part if self.dtype is None else rounded(part, self.dtype)

    def sealed(self, packed: Adapter, theta: Adapter, seed: int) -> Adapter:
        """Return what the client sends: its packed adapter, or the change of it in a few bits per value.

        Args:
            packed: what `pack` returned.
            theta: θ, the adapter that the client received.
            seed: seed of the rounding.
        """
        return packed if self.bits is None else quantized(packed, self.part(theta), self.bits, seed)

    def opened(self, upload: Adapter, theta: Adapter) -> Adapter:
        """Return the adapter that an upload holds, in θ's dtypes.

        Args:
            upload: tensors of the form that `expected` returns.
            theta: θ, the adapter that the client received.
        """
        if self.bits is None:
            return widened(upload, theta)
        return restored(upload, self.part(theta), self.bits)

    def expected(self, theta: Adapter) -> Adapter:
        """Return tensors of the shapes and dtypes of what the client sends; their values mean nothing.

        Args:
            theta: θ, the adapter that the client received.
        """
        part = self.part(theta)
        if self.bits is not None:
            return quantized_form(part, self.bits)
        if self.dtype is None:
            return part
        return {name: torch.empty(t.shape, dtype=self.dtype, device="meta") for name, t in part.items()}


#: The whole adapter, as it was trained.
WHOLE = UploadFormat()


def rounded(adapter: Adapter, dtype: torch.dtype) -> Adapter:
    """Return an adapter rounded to the nearest values of a dtype.

    Raises:
        UserError: a finite value became infinite.

    >>> rounded({"w": torch.tensor([1 + 2**-12, 1 + 2**-10 + 2**-11])}, torch.float16)["w"].tolist()
    [1.0, 1.001953125]
    """
    narrow = {name: tensor.to(dtype) for name, tensor in adapter.items()}
    for name, tensor in narrow.items():
        if not tensor.isfinite().all():
            largest = float(adapter[name].abs().max())
            raise UserError(
                f"federation.upload: tensor {name} has a value of {largest:.4g}, and the largest of {str(dtype)[6:]} "
                f"is {torch.finfo(dtype).max:.4g}; nothing was sent. Set federation.upload: bfloat16 or float32, or "
                "lower client.learning_rate."
            )
    return narrow


def widened(upload: Adapter, theta: Mapping[str, torch.Tensor]) -> Adapter:
    """Return a received adapter in the dtypes of θ, which are at least as wide: no value changes."""
    return {name: tensor.to(theta[name].dtype) for name, tensor in upload.items()}


def component_axis(name: str) -> int | None:
    """Return the axis of a tensor along which LoRA's components lie; None if the tensor has no components.

    >>> [component_axis(f"q_proj.{name}") for name in ("lora_A.weight", "lora_B.weight", "lora_B.bias")]
    [0, 1, None]
    """
    *_, kind, leaf = ("", "", *name.split("."))
    return None if leaf == "bias" else _AXES.get(kind)


def first(adapter: Adapter, rank: int) -> Adapter:
    """Return the first components of an adapter, as views: of A, [r, K] → [r_k, K]; of B, [N, r] → [N, r_k]."""
    axes = {name: component_axis(name) for name in adapter}
    return {
        name: tensor if axis is None else tensor.narrow(axis, 0, min(rank, tensor.shape[axis]))
        for (name, tensor), axis in zip(adapter.items(), axes.values(), strict=True)
    }


def truncated(adapter: Adapter, rank: int) -> Adapter:
    """Return an adapter of the same shapes, in which all components except the first ones are zero."""
    padded: Adapter = {}
    for name, part in first(adapter, rank).items():
        axis = component_axis(name)
        padded[name] = adapter[name]
        if axis is not None:
            padded[name] = torch.zeros_like(adapter[name])
            padded[name].narrow(axis, 0, part.shape[axis]).copy_(part)
    return padded
