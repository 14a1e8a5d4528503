"""LoRA layers as a few large matrix products. The parameters do not change.

PEFT computes y = x Wᵀ + s (x Aᵀ) Bᵀ (Hu et al., arXiv 2106.09685, eq. 3) with three products per layer, and casts
before and after the last two. Here, layers that share an input (query, key and value; gate and up) are computed
together. One matrix in the base's dtype holds their frozen weights and their A, stacked row-wise, so that one product
returns x Wᵀ and x Aᵀ of all of them, and one product of the backward pass returns the whole gradient of x. The
parameters remain PEFT's own, in float32: the matrix holds copies of A, and the frozen weights are views of the matrix.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # not public
_copy_each: Callable[[list[Tensor], list[Tensor]], None] = cast(Any, torch)._foreach_copy_  # not public either

#: The name that PEFT gives to the only adapter.
ADAPTER = "default"


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b, [T, N]. Autograd does not record it.

    In float32 on a CPU, oneDNN computes it, which is up to 1.4 times as fast as MKL on processors by AMD.

    Args:
        x: [T, K].
        weight: [N, K], with any strides.
        bias: [N], or None.
    """
    if _ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and len(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return functional.linear(x, weight, bias)


class LoraStack:
    """Linear layers with LoRA adapters that share an input, computed together.

    Args:
        layers: PEFT's layers; their frozen weights become views of `matrix`.

    Attributes:
        layers: PEFT's layers.
        matrix: [N + R, K] in the base's dtype: the frozen weights of all layers, then copies of every A.
        bias: [N + R], zero beside A; None if no layer has a bias.
        b: [N, R] in the base's dtype: copies of every B as blocks on the diagonal, zero elsewhere.
        widths: number of outputs of each layer.
        outputs: N, the sum of `widths`.
        ranks: rank of each layer's adapter; R is the sum of the ranks.
        scale: s = α / r, the same for all layers.
    """

    def __init__(self, layers: Sequence[Any]):
        self.layers: list[Any] = list(layers)
        weights: list[Tensor] = [layer.base_layer.weight for layer in layers]
        self.widths: list[int] = [len(weight) for weight in weights]
        self.ranks: list[int] = [layer.r[ADAPTER] for layer in layers]
        self.outputs: int = sum(self.widths)
        self.scale: float = layers[0].scaling[ADAPTER]
        self.matrix: Tensor = weights[0].new_empty(self.outputs + sum(self.ranks), weights[0].shape[1])
        for weight, rows in zip(weights, self.matrix[: self.outputs].split_with_sizes(self.widths), strict=True):
            rows.copy_(weight.data)
            weight.data = rows
        self.b: Tensor = self.matrix.new_zeros(self.outputs, sum(self.ranks))
        self.bias: Tensor | None = self._stacked_biases()
        self._copies: list[Tensor] = [
            *self.matrix[self.outputs :].split_with_sizes(self.ranks),
            *self._blocks(self.b.split_with_sizes(self.widths)),
        ]
        self._waiting: tuple[Tensor, list[Tensor | None]] | None = None

    def _stacked_biases(self) -> Tensor | None:
        biases: list[Tensor | None] = [layer.base_layer.bias for layer in self.layers]
        if not any(bias is not None for bias in biases):
            return None
        stacked = self.matrix.new_zeros(len(self.matrix))
        for bias, part in zip(biases, stacked[: self.outputs].split_with_sizes(self.widths), strict=True):
            part.copy_(bias.data if bias is not None else torch.zeros_like(part))
        return stacked

    def takes(self, dtype: torch.dtype) -> bool:
        """Return whether the stack can compute its layers now, for inputs of a dtype.

        It cannot if the model was moved or cast, or if its adapter is disabled or merged.
        """
        plain = not any(layer.disable_adapters or layer.merged for layer in self.layers)
        moved = self.layers[0].base_layer.weight.data_ptr() != self.matrix.data_ptr()
        return plain and not moved and dtype == self.matrix.dtype

    def adapters(self) -> list[Tensor]:
        """Return PEFT's parameters: the A of every layer, then the B of every layer."""
        pairs = [(layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight) for layer in self.layers]
        return [a for a, _ in pairs] + [b for _, b in pairs]

    def forward(self, x: Tensor, adapters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the outputs of all layers. Autograd does not record it.

        Args:
            x: [T, K].
            adapters: the values of `adapters()`; they stay in `matrix` and `b` for `backward`.

        Returns:
            The outputs y, [T, N], and x Aᵀ, [T, R], which `backward` needs.
        """
        _copy_each(self._copies, list(adapters))
        both = product(x, self.matrix, self.bias)  # [T, N + R]: x Wᵀ beside x Aᵀ
        y, inner = both[:, : self.outputs], both[:, self.outputs :].contiguous()
        return y.addmm_(inner, self.b.t(), alpha=self.scale), inner

    def gradient_buffer(self, x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Return an empty buffer for the gradients of the outputs, [T, N + R], and its view per layer, [T, n]."""
        both = x.new_empty(len(x), len(self.matrix))
        return both, both[:, : self.outputs].split_with_sizes(self.widths, dim=1)

    def pack_gradients(self, x: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """Return a `gradient_buffer` that holds these gradients of the outputs, each [..., n]."""
        both, parts = self.gradient_buffer(x)
        for part, gradient in zip(parts, gradients, strict=True):
            part.copy_(gradient.reshape(len(x), -1))
        return both

    def backward(self, both: Tensor, x: Tensor, inner: Tensor, of_x: bool = True) -> tuple[Tensor | None, list[Tensor]]:
        """Return the gradient of x, [T, K], or None if it is not needed, and the gradients of `adapters()`.

        Args:
            both: a `gradient_buffer` that holds the gradients of the outputs.
            x: [T, K], the input of the forward pass.
            inner: [T, R], as `forward` returned it.
            of_x: whether the gradient of x is needed.
        """
        outer, hidden = both[:, : self.outputs], both[:, self.outputs :]
        torch.addmm(hidden, outer, self.b, beta=0, alpha=self.scale, out=hidden)
        of_a = torch.mm(hidden.t(), x).float().split_with_sizes(self.ranks)  # each [r, K]
        of_b = torch.mm(outer.t(), inner).float().mul_(self.scale).split_with_sizes(self.widths)  # each [n, R]
        return product(both, self.matrix.t()) if of_x else None, [*of_a, *self._blocks(of_b)]

    def _blocks(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Return the blocks [n, r] on the diagonal of an [N, R] matrix, given its rows per layer, each [n, R]."""
        return [part.split_with_sizes(self.ranks, dim=1)[i] for i, part in enumerate(rows)]

    def output(self, member: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output of one layer, [..., n], in place of its own `forward`.

        The first call with an input computes all layers. Their outputs wait until each layer is called with that input.

        Args:
            member: position of the layer in `layers`.
            x: [..., K].
            args: further arguments of PEFT's `forward`.
            kwargs: further arguments of PEFT's `forward`; if there are any, PEFT computes the output.
        """
        if kwargs or not self.takes(x.dtype):
            layer = self.layers[member]
            return cast(Any, type(layer)).forward(layer, x, *args, **kwargs)
        if self._waiting is None or self._waiting[0] is not x or self._waiting[1][member] is None:
            self._waiting = x, list(cast(Any, _Stacked).apply(x, self, *self.adapters()))
        outputs = self._waiting[1]
        y, outputs[member] = outputs[member], None
        if not any(output is not None for output in outputs):
            self._waiting = None
        assert y is not None
        return y


class _Stacked(torch.autograd.Function):
    """y_i = x W_iᵀ + b_i + s (x A_iᵀ) B_iᵀ for all layers i at once, with gradients of x, A_i and B_i."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stack: LoraStack, *adapters: Tensor) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])  # [T, K]
        y, inner = stack.forward(flat, adapters)
        ctx.save_for_backward(flat, inner)
        ctx.stack, ctx.shape = stack, x.shape
        return tuple(part.view(*x.shape[:-1], -1) for part in y.split_with_sizes(stack.widths, dim=1))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        flat, inner = ctx.saved_tensors
        both = ctx.stack.pack_gradients(flat, grad_outputs)
        of_x, of_adapters = ctx.stack.backward(both, flat, inner, ctx.needs_input_grad[0])
        return None if of_x is None else of_x.view(ctx.shape), None, *of_adapters
