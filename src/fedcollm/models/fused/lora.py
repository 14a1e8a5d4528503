"""LoRA as few large products. No parameter changes.

PEFT computes y = x Wᵀ + s (x Aᵀ) Bᵀ (Hu et al., arXiv 2106.09685, eq. 3) as three products for every layer, with a
change of dtype around the last two. Here the layers that share an input (query, key and value; gate and up) are one:
their frozen weights and their A, in the base's dtype, lie below each other in one matrix, so that one product gives
x Wᵀ and x Aᵀ of all of them, and one product of the backward pass gives the whole gradient of x. The parameters stay
PEFT's own, in float32: the matrix holds copies of A, and the frozen weights are views into it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # not public

#: PEFT's name of the one adapter.
ADAPTER = "default"


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X Wᵀ + b, without a record for gradients; float32 on a CPU by oneDNN, up to 1.4 x as fast as by MKL on AMD.

    Args:
        x: [T, K].
        weight: [N, K], in any strides.
        bias: [N], or None.
    """
    if _ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and len(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return functional.linear(x, weight, bias)


class LoraStack:
    """Linear layers with LoRA adapters that share an input, as one matrix.

    Args:
        layers: PEFT's layers; their frozen weights become views into the matrix.

    Attributes:
        matrix: [N + R, K] in the base's dtype: all frozen weights, then copies of all A.
        bias: [N + R], zero beside A; None if no layer has one.
        b: [N, R] in the base's dtype: copies of all B on the diagonal, zero beside it.
        widths: rows of each layer's weight; `outputs` is their sum N.
        ranks: rows of each layer's A; their sum is R.
        scale: s = α / r, the same for all layers.
    """

    def __init__(self, layers: Sequence[Any]):
        self.layers = list(layers)
        weights = [layer.base_layer.weight for layer in layers]
        self.widths, self.ranks = [len(w) for w in weights], [layer.r[ADAPTER] for layer in layers]
        self.outputs, self.scale = sum(self.widths), layers[0].scaling[ADAPTER]
        self.matrix = weights[0].new_empty(self.outputs + sum(self.ranks), weights[0].shape[1])
        for weight, rows in zip(weights, self.matrix[: self.outputs].split(self.widths), strict=True):
            rows.copy_(weight.data)
            weight.data = rows
        self.b = self.matrix.new_zeros(self.outputs, sum(self.ranks))
        self._copies = [*self.matrix[self.outputs :].split(self.ranks), *self._blocks(self.b.split(self.widths))]
        biases = [layer.base_layer.bias for layer in layers]
        self.bias = None
        if any(bias is not None for bias in biases):
            self.bias = self.matrix.new_zeros(len(self.matrix))
            for bias, part in zip(biases, self.bias[: self.outputs].split(self.widths), strict=True):
                part.copy_(bias.data if bias is not None else torch.zeros_like(part))
        self._waiting: tuple[Tensor, list[Tensor | None]] | None = None

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether the matrix stands for the layers now: not if the model changed, or its adapter is off or merged."""
        plain = not any(layer.disable_adapters or layer.merged for layer in self.layers)
        moved = self.layers[0].base_layer.weight.data_ptr() != self.matrix.data_ptr()
        return plain and not moved and dtype == self.matrix.dtype

    def adapters(self) -> list[Tensor]:
        """All A, then all B: PEFT's parameters."""
        pairs = [(layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight) for layer in self.layers]
        return [a for a, _ in pairs] + [b for _, b in pairs]

    def forward(self, x: Tensor, adapters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """All outputs, without a record for gradients.

        Args:
            x: [T, K].
            adapters: values of `adapters()`; they stay in `matrix` and `b` for `backward`.

        Returns:
            y, [T, N], and for `backward` x Aᵀ, [T, R].
        """
        torch._foreach_copy_(self._copies, list(adapters))  # pyright: ignore[reportPrivateImportUsage]
        both = product(x, self.matrix, self.bias)  # [T, N + R]: x Wᵀ beside x Aᵀ
        y, inner = both[:, : self.outputs], both[:, self.outputs :].contiguous()
        return y.addmm_(inner, self.b.t(), alpha=self.scale), inner

    def room(self, x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Where the gradients of the outputs go: [T, N + R], and its part for each layer, [T, n]."""
        both = x.new_empty(len(x), len(self.matrix))
        return both, both[:, : self.outputs].split(self.widths, dim=1)

    def joined(self, x: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """`room`, with these gradients of the outputs, each [..., n], copied in."""
        both, parts = self.room(x)
        for part, gradient in zip(parts, gradients, strict=True):
            part.copy_(gradient.reshape(len(x), -1))
        return both

    def backward(self, both: Tensor, x: Tensor, inner: Tensor, of_x: bool = True) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients of x, [T, K], if it is asked for, and of `adapters()`.

        Args:
            both: `room`, with the gradients of the outputs.
            x: [T, K].
            inner: as `forward` gave it.
            of_x: whether the gradient of x is needed.
        """
        outer, hidden = both[:, : self.outputs], both[:, self.outputs :]
        torch.addmm(hidden, outer, self.b, beta=0, alpha=self.scale, out=hidden)
        of_a = torch.mm(hidden.t(), x).float().split(self.ranks)  # each [r, K]
        of_b = torch.mm(outer.t(), inner).float().mul_(self.scale).split(self.widths)  # each [n, R]
        return product(both, self.matrix.t()) if of_x else None, [*of_a, *self._blocks(of_b)]

    def _blocks(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """The blocks [n, r] on the diagonal of an [N, R] matrix, from its rows of each layer, [n, R]."""
        return [part.split(self.ranks, dim=1)[i] for i, part in enumerate(rows)]

    def output(self, member: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One layer's output [..., n] for x [..., K]; the others' are kept for their turn with the same x."""
        if kwargs or not self.takes(x.dtype):
            return type(self.layers[member]).forward(self.layers[member], x, *args, **kwargs)
        if self._waiting is None or self._waiting[0] is not x or self._waiting[1][member] is None:
            self._waiting = x, list(_Stacked.apply(x, self, *self.adapters()))  # pyright: ignore
        outputs = self._waiting[1]
        y, outputs[member] = outputs[member], None
        if not any(output is not None for output in outputs):
            self._waiting = None
        return y  # pyright: ignore[reportReturnType]


class _Stacked(torch.autograd.Function):
    """y_i = x W_iᵀ + b_i + s (x A_iᵀ) B_iᵀ for all members i at once; gradients of x, A_i and B_i."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stack: LoraStack, *adapters: Tensor) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])  # [T, K]
        y, inner = stack.forward(flat, adapters)
        ctx.save_for_backward(flat, inner)
        ctx.stack, ctx.shape = stack, x.shape
        return tuple(part.view(*x.shape[:-1], -1) for part in y.split(stack.widths, dim=1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        flat, inner = ctx.saved_tensors
        both = ctx.stack.joined(flat, gradients)
        of_x, of_adapters = ctx.stack.backward(both, flat, inner, ctx.needs_input_grad[0])
        return None if of_x is None else of_x.view(ctx.shape), None, *of_adapters
