"""What of θ_k a client sends, and in what form the server must expect it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedcollm.errors import UserError
from fedcollm.messages import Adapter


@dataclass(frozen=True)
class Upload:
    """The form that a client's adapter travels in.

    Attributes:
        dtype: of the values, rounded to the nearest; None: as they were trained.
    """

    dtype: torch.dtype | None = None

    def pack(self, adapter: Adapter) -> Adapter:
        """What travels of an adapter.

        Raises:
            UserError: a value is larger than the dtype's largest; the message names its tensor.
        """
        return adapter if self.dtype is None else rounded(adapter, self.dtype)

    def expected(self, theta: Adapter) -> Adapter:
        """Shapes and dtypes of what travels, as tensors without storage; θ is the adapter that was sent."""
        dtype = self.dtype
        return {name: torch.empty(t.shape, dtype=dtype or t.dtype, device="meta") for name, t in theta.items()}


#: All of an adapter, as it was trained.
WHOLE = Upload()


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
