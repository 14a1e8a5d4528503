"""What of θ_k a client sends, and in what form the server must expect it.

Clients may have ranks of their own (HetLoRA, Cho et al., arXiv 2401.06432; FlexLoRA, Bai et al., arXiv 2402.11505): a
client of rank r_k has the first r_k components of θ, which are the first rows of every A and the first columns of every
B. Where both a row of A and the column of B beside it are zero, their gradients are zero too, and AdamW without weight
decay leaves them there: a client trains r_k components inside a module of the full rank, and all clients of a process
share one model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedcollm.errors import UserError
from fedcollm.messages import Adapter

_AXES = {"lora_A": 0, "lora_B": 1}


@dataclass(frozen=True)
class UploadFormat:
    """The form that a client's adapter travels in.

    Attributes:
        dtype: of the values, rounded to the nearest; None: as they were trained.
        rank: r_k, components of LoRA that the client has; None: all.
    """

    dtype: torch.dtype | None = None
    rank: int | None = None

    def part(self, adapter: Adapter) -> Adapter:
        """The client's components, as views."""
        return adapter if self.rank is None else first(adapter, self.rank)

    def pack(self, adapter: Adapter) -> Adapter:
        """What travels of an adapter.

        Raises:
            UserError: a value is larger than the dtype's largest; the message names its tensor.
        """
        part = self.part(adapter)
        return part if self.dtype is None else rounded(part, self.dtype)

    def expected(self, theta: Adapter) -> Adapter:
        """Shapes and dtypes of what travels, as tensors without storage; θ is the adapter that was sent."""
        dtype, part = self.dtype, self.part(theta)
        return {name: torch.empty(t.shape, dtype=dtype or t.dtype, device="meta") for name, t in part.items()}


#: All of an adapter, as it was trained.
WHOLE = UploadFormat()


def rounded(adapter: Adapter, dtype: torch.dtype) -> Adapter:
    """The nearest values of a dtype.

    Raises:
        UserError: a finite value becomes infinite.

    >>> rounded({"w": torch.tensor([1 + 2**-12, 1 + 2**-10 + 2**-11])}, torch.float16)["w"].tolist()
    [1.0, 1.001953125]
    """
    narrow = {name: tensor.to(dtype) for name, tensor in adapter.items()}
    for name, tensor in narrow.items():
        if not tensor.isfinite().all():
            largest = float(adapter[name].abs().max())
            raise UserError(
                f"federation.upload: tensor {name} has a value of {largest:.4g}, and {str(dtype)[6:]} ends at "
                f"{torch.finfo(dtype).max:.4g}; nothing was sent. Set federation.upload: bfloat16 or float32, or lower "
                "client.learning_rate."
            )
    return narrow


def widened(upload: Adapter, theta: Mapping[str, torch.Tensor]) -> Adapter:
    """What was sent, in the dtypes of θ: no bit of it changes."""
    return {name: tensor.to(theta[name].dtype) for name, tensor in upload.items()}


def component_axis(name: str) -> int | None:
    """The axis along which LoRA's components lie in a tensor; None if it has none.

    >>> [component_axis(f"q_proj.{name}") for name in ("lora_A.weight", "lora_B.weight", "lora_B.bias")]
    [0, 1, None]
    """
    *_, kind, leaf = ("", "", *name.split("."))
    return None if leaf == "bias" else _AXES.get(kind)


def first(adapter: Adapter, rank: int) -> Adapter:
    """The first components, as views: [r, K] of A becomes [r_k, K], [N, r] of B becomes [N, r_k]."""
    axes = {name: component_axis(name) for name in adapter}
    return {
        name: tensor if axis is None else tensor.narrow(axis, 0, min(rank, tensor.shape[axis]))
        for (name, tensor), axis in zip(adapter.items(), axes.values(), strict=True)
    }


def truncated(adapter: Adapter, rank: int) -> Adapter:
    """The same shapes with zeros behind the first components."""
    padded: Adapter = {}
    for name, part in first(adapter, rank).items():
        axis = component_axis(name)
        padded[name] = adapter[name]
        if axis is not None:
            padded[name] = torch.zeros_like(adapter[name])
            padded[name].narrow(axis, 0, part.shape[axis]).copy_(part)
    return padded
