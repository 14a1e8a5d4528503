"""The two halves of a transformer layer, attention and MLP, each as one step with a backward pass written by hand.

A half computes x + f(norm(x)), where every linear layer of f is in a `LoraStack`. Autograd records one step instead of
about thirty operations. The step keeps for its backward pass only those tensors that no cheap pointwise operation can
recompute.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from fedcollm.models.fused.attention import GROUPED, LONGEST, attend, attend_backward
from fedcollm.models.fused.lora import LoraStack

_linalg: Any = torch.linalg  # has no type annotations


def normalize(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return x / √(mean(x²) + ε) (Zhang and Sennrich, arXiv 1910.07467, eq. 4), and 1 / √(mean(x²) + ε) in float32.

    Args:
        x: [T, H].
        epsilon: ε.

    Returns:
        Two tensors, [T, H] in the dtype of x and [T, 1].
    """
    wide = x.float()
    mean: Tensor = _linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    inverse = mean.add_(epsilon).rsqrt_()
    return (wide * inverse).to(x.dtype), inverse


def normalize_backward(gradient: Tensor, normal: Tensor, inverse: Tensor) -> Tensor:
    """Return the gradient of x, [T, H].

    Args:
        gradient: [T, H], the gradient of the first output of `normalize`.
        normal: [T, H], the first output of `normalize`.
        inverse: [T, 1], its second output.
    """
    along = (gradient * normal).mean(-1, keepdim=True, dtype=torch.float32)
    return torch.addcmul(gradient, normal, along.neg_().to(normal.dtype)).mul_(inverse.to(normal.dtype))


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, direction: int = 1) -> None:
    """Apply rotary position embeddings (Su et al., arXiv 2104.09864, eq. 34), which pair the two halves of a head.

    Args:
        x: [T, h, d].
        cos: [T, 1, d / 2].
        sin: [T, 1, d / 2].
        out: [T, h, d], where the result is written.
        direction: 1, or -1 to rotate backward, as the backward pass does.
    """
    (first, second), (turned_first, turned_second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(first, cos, out=turned_first).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=turned_second).addcmul_(first, sin, value=direction)


@dataclass(frozen=True)
class Grid:
    """The places of T tokens among B sequences of N columns.

    Attributes:
        batch: B.
        columns: N.
        index: [T] int64, the place of each token among the B N places; None if there is a token at every place.
    """

    batch: int
    columns: int
    index: Tensor | None = None

    def spread(self, tokens: Tensor) -> Tensor:
        """Return values per place, [B N, K], given values per token, [T, K]; zero where there is no token."""
        if self.index is None:
            return tokens
        return tokens.new_zeros(self.batch * self.columns, tokens.shape[1]).index_copy_(0, self.index, tokens)

    def gather(self, places: Tensor) -> Tensor:
        """Return values per token, [T, K], given values per place, [B N, K]."""
        return places if self.index is None else places.index_select(0, self.index)

    def heads(self, places: Tensor, width: int) -> Tensor:
        """Return a view of [B N, h d] as [B, h, N, d], where d is the width of a head."""
        return places.view(self.batch, self.columns, -1, width).transpose(1, 2)


@dataclass(frozen=True)
class AttentionInputs:
    """What attention reads besides its input.

    Attributes:
        grid: the places of the tokens.
        mask: [B, 1, N, N], added to the scores; None if every token attends to every other one.
        cos: [T, 1, d / 2], the cosines of the rotary positions.
        sin: [T, 1, d / 2], their sines.
    """

    grid: Grid
    mask: Tensor | None
    cos: Tensor
    sin: Tensor


class Half:
    """One half of a transformer layer: a norm, the linear layers that read its output, and the last linear layer.

    Args:
        norm: a root-mean-square norm with a frozen weight.
        module: the layer's attention or MLP.
        first: query, key and value of attention; gate and up of an MLP.
        last: output of attention; down of an MLP.
    """

    def __init__(self, norm: Any, module: Any, first: LoraStack, last: LoraStack):
        self.norm: Any = norm
        self.module: Any = module
        self.first: LoraStack = first
        self.last: LoraStack = last

    def takes(self, dtype: torch.dtype) -> bool:
        """Return whether both stacks can compute their layers now, for inputs of a dtype."""
        return self.first.takes(dtype) and self.last.takes(dtype)

    def adapters(self) -> list[Tensor]:
        """Return PEFT's parameters of both stacks."""
        return self.first.adapters() + self.last.adapters()

    def split(self, adapters: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the values of `adapters()` per stack."""
        return adapters[:-2], adapters[-2:]

    def normalized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both outputs of `normalize` for the layer's own ε. The norm's weight is not applied."""
        return normalize(x, self.norm.variance_epsilon)

    def backward_first(
        self, both: Tensor, gradient: Tensor, normalized: tuple[Tensor, Tensor], inner: Tensor, of_x: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Return the gradients of the half's input (None if it is not needed) and of the first stack's adapters.

        Args:
            both: a `gradient_buffer` of the first stack that holds the gradients of its outputs.
            gradient: the gradient of the half's output, which the residual connection adds to that of its input.
            normalized: both outputs of `normalized`.
            inner: [T, R], as the first stack's `forward` returned it.
            of_x: whether the gradient of the input is needed.
        """
        (normal, inverse), weight = normalized, self.norm.weight
        of_normal, of_adapters = self.first.backward(both, normal * weight, inner, of_x)
        if of_normal is None:
            return None, of_adapters
        of_flat = normalize_backward(of_normal.mul_(weight), normal, inverse)
        return of_flat.view(gradient.shape).add_(gradient), of_adapters


class MlpHalf(Half):
    """x + W_d (silu(W_g n) * W_u n), n = norm(x) (Shazeer, arXiv 2002.05202, eq. 5)."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return the half's output, [..., H], for x, [..., H]."""
        return cast(Any, _Mlp).apply(x, self, *self.adapters())


class AttentionHalf(Half):
    """x + W_o attention(W_q n, W_k n, W_v n), n = norm(x), with rotary positions."""

    def suits(self, columns: int) -> bool:
        """Return whether grouped attention is set, has no dropout now, and is used for this number of columns."""
        module = self.module
        dropout = module.training and module.attention_dropout > 0
        return module.config._attn_implementation == GROUPED and not dropout and columns <= LONGEST

    def __call__(
        self, x: Tensor, mask: Tensor | None, positions: tuple[Tensor, Tensor], index: Tensor | None = None
    ) -> Tensor:
        """Return the half's output, in the shape of x.

        Args:
            x: [B, N, H]; with an index, the tokens alone, [1, T, H].
            mask: [B, 1, N, N], added to the scores; required with an index.
            positions: cosines and sines, [B, N, d], or [1, T, d] with an index; the two halves of d are alike.
            index: [T] int64, the place of each token among the B N places.
        """
        batch, columns = x.shape[:2] if index is None or mask is None else (mask.shape[0], mask.shape[-1])
        cos, sin = (values.expand(*x.shape[:2], -1).reshape(-1, 1, values.shape[-1]) for values in positions)
        half = cos.shape[-1] // 2
        inputs = AttentionInputs(Grid(batch, columns, index), mask, cos[..., :half], sin[..., :half])
        return cast(Any, _Attention).apply(x, self, inputs, *self.adapters())


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, half: MlpHalf, *adapters: Tensor) -> Tensor:
        flat, (first, last) = x.reshape(-1, x.shape[-1]), half.split(adapters)
        normal, inverse = half.normalized(flat)
        y, inner = half.first.forward(normal * half.norm.weight, first)
        gate, up = y.split_with_sizes(half.first.widths, dim=1)
        middle = functional.silu(gate).mul_(up)
        result, inner_last = half.last.forward(middle, last)
        ctx.save_for_backward(normal, inverse, y, inner, inner_last)
        ctx.half = half
        return torch.add(result, flat).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        half: MlpHalf = ctx.half
        gradient: Tensor = grad_outputs[0]
        normal, inverse, y, inner, inner_last = ctx.saved_tensors
        gate, up = y.split_with_sizes(half.first.widths, dim=1)
        gated = functional.silu(gate)
        of_middle, of_last = half.last.backward(half.last.pack_gradients(normal, [gradient]), gated * up, inner_last)
        assert of_middle is not None
        both, (of_gate, of_up) = half.first.gradient_buffer(normal)
        torch.mul(of_middle, gated, out=of_up)
        torch.ops.aten.silu_backward.grad_input(of_middle.mul_(up), gate, grad_input=of_gate)
        of_x, of_first = half.backward_first(both, gradient, (normal, inverse), inner, ctx.needs_input_grad[0])
        return of_x, None, *of_first, *of_last


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, half: AttentionHalf, inputs: AttentionInputs, *adapters: Tensor) -> Tensor:
        flat, (first, last), grid = x.reshape(-1, x.shape[-1]), half.split(adapters), inputs.grid
        normal, inverse = half.normalized(flat)
        y, inner = half.first.forward(normal * half.norm.weight, first)
        turned, width, widths = y.new_empty(y.shape), half.module.head_dim, half.first.widths
        _rotate_heads(half, y, turned, inputs.cos, inputs.sin)
        turned[:, : widths[0]].mul_(half.module.scaling)
        query, key, value = (grid.heads(part, width) for part in grid.spread(turned).split_with_sizes(widths, dim=1))
        context, attended = attend(query, key, value, inputs.mask)
        context = grid.gather(context.transpose(1, 2).reshape(grid.batch * grid.columns, -1))
        result, inner_last = half.last.forward(context, last)
        ctx.save_for_backward(normal, inverse, inputs.cos, inputs.sin, context, inner, inner_last, *attended)
        ctx.half, ctx.grid = half, grid
        return torch.add(result, flat).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        half: AttentionHalf = ctx.half
        gradient: Tensor = grad_outputs[0]
        grid, width = ctx.grid, half.module.head_dim
        normal, inverse, cos, sin, context, inner, inner_last, *attended = ctx.saved_tensors
        of_context, of_last = half.last.backward(half.last.pack_gradients(normal, [gradient]), context, inner_last)
        assert of_context is not None
        of_qkv = attend_backward(grid.heads(grid.spread(of_context), width), *attended)
        joint = normal.new_empty(grid.batch * grid.columns, half.first.outputs)
        for place, value in zip(joint.split_with_sizes(half.first.widths, dim=1), of_qkv, strict=True):
            place = grid.heads(place, width)
            place.copy_(value.view(place.shape))
        joint = grid.gather(joint)
        joint[:, : half.first.widths[0]].mul_(half.module.scaling)
        both, _ = half.first.gradient_buffer(normal)
        _rotate_heads(half, joint, both[:, : half.first.outputs], cos, sin, direction=-1)
        of_x, of_first = half.backward_first(both, gradient, (normal, inverse), inner, ctx.needs_input_grad[0])
        return of_x, None, None, *of_first, *of_last


def _rotate_heads(half: AttentionHalf, x: Tensor, out: Tensor, cos: Tensor, sin: Tensor, direction: int = 1) -> None:
    """Rotate the queries and keys in x, [T, N], and copy the values, both into `out`; see `rotate`."""
    turned = sum(half.first.widths[:2])
    before, after = (part[:, :turned].view(len(x), -1, half.module.head_dim) for part in (x, out))
    rotate(before, cos, sin, after, direction)
    out[:, turned:].copy_(x[:, turned:])
