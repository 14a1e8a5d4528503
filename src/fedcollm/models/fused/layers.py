"""The two halves of a transformer layer, attention and MLP, as one step each, with a backward pass written by hand.

A half is x + f(norm(x)), with every linear layer of f in a `LoraStack`. One step instead of some thirty recorded
operations, and only what can't be made again at the price of a pointwise operation is kept for the backward pass.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fedcollm.models.fused.attention import GROUPED, LONGEST, attend, attend_backward
from fedcollm.models.fused.lora import LoraStack


def normalize(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Norm x / √(mean(x²) + ε) (Zhang and Sennrich, arXiv 1910.07467, eq. 4); and 1 / √... in float32."""
    wide = x.float()
    mean = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    inverse = mean.add_(epsilon).rsqrt_()
    return (wide * inverse).to(x.dtype), inverse


def normalise_backward(gradient: Tensor, normal: Tensor, inverse: Tensor) -> Tensor:
    """Gradient of x, from that of `normalize`'s first output and from both outputs."""
    along = (gradient * normal).mean(-1, keepdim=True, dtype=torch.float32)
    return torch.addcmul(gradient, normal, along.neg_().to(normal.dtype)).mul_(inverse.to(normal.dtype))


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, direction: int = 1) -> None:
    """Rotary position embedding (Su et al., arXiv 2104.09864, eq. 34), its pairs being the halves of a head.

    Args:
        x: [T, h, d].
        cos: [T, 1, d / 2].
        sin: [T, 1, d / 2].
        out: [T, h, d], written.
        direction: -1 turns back, which is the backward pass.
    """
    (first, second), (turned_first, turned_second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(first, cos, out=turned_first).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=turned_second).addcmul_(first, sin, value=direction)


@dataclass(frozen=True)
class Grid:
    """Where T tokens stand among B sequences of N columns.

    Attributes:
        batch: B.
        columns: N.
        index: [T] int64, each token's place in the B N ones; None if all of them are tokens.
    """

    batch: int
    columns: int
    index: Tensor | None = None

    def spread(self, tokens: Tensor) -> Tensor:
        """[T, K] to [B N, K], zero where no token stands."""
        if self.index is None:
            return tokens
        return tokens.new_zeros(self.batch * self.columns, tokens.shape[1]).index_copy_(0, self.index, tokens)

    def gather(self, places: Tensor) -> Tensor:
        """[B N, K] to [T, K]."""
        return places if self.index is None else places.index_select(0, self.index)

    def heads(self, places: Tensor, width: int) -> Tensor:
        """[B N, h d] as [B, h, N, d]."""
        return places.view(self.batch, self.columns, -1, width).transpose(1, 2)


class Half:
    """One half of a layer: its norm, the layers that read the norm's output, and the one that writes the result.

    Args:
        norm: root-mean-square norm with a frozen weight.
        module: the layer's attention or MLP.
        first: query, key and value; or gate and up.
        last: output; or down.
    """

    def __init__(self, norm: Any, module: Any, first: LoraStack, last: LoraStack):
        self.norm, self.module, self.first, self.last = norm, module, first, last

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether both stacks stand for their layers now, for inputs of this dtype."""
        return self.first.takes(dtype) and self.last.takes(dtype)

    def adapters(self) -> list[Tensor]:
        """PEFT's parameters of both stacks."""
        return self.first.adapters() + self.last.adapters()

    def split(self, adapters: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """`adapters()` of each stack."""
        return adapters[:-2], adapters[-2:]


class MlpHalf(Half):
    """x + W_d (silu(W_g n) * W_u n), n = norm(x) (Shazeer, arXiv 2002.05202, eq. 5)."""

    def __call__(self, x: Tensor) -> Tensor:
        """[..., H] to [..., H]."""
        return _Mlp.apply(x, self, *self.adapters())  # pyright: ignore[reportReturnType]


class AttentionHalf(Half):
    """x + W_o attention(W_q n, W_k n, W_v n), n = norm(x), with rotary positions."""

    def suits(self, columns: int) -> bool:
        """Whether N columns are for grouped attention: short enough, and no dropout."""
        module = self.module
        dropout = module.training and module.attention_dropout > 0
        return module.config._attn_implementation == GROUPED and not dropout and columns <= LONGEST

    def __call__(
        self, x: Tensor, mask: Tensor | None, positions: tuple[Tensor, Tensor], index: Tensor | None = None
    ) -> Tensor:
        """[B, N, H] to [B, N, H]; with an index, [1, T, H] to [1, T, H], the tokens alone.

        Args:
            x: all columns, or the tokens among them.
            mask: [B, 1, N, N], added to the scores; needed with an index.
            positions: cosines and sines, [B, N, d], or [1, T, d] with an index; each half alike.
            index: [T] int64, each token's place in the B N ones.
        """
        batch, columns = x.shape[:2] if index is None or mask is None else (mask.shape[0], mask.shape[-1])
        grid = Grid(batch, columns, index)
        cos, sin = (values.expand(*x.shape[:2], -1).reshape(-1, 1, values.shape[-1]) for values in positions)
        half = cos.shape[-1] // 2
        return _Attention.apply(x, self, mask, grid, cos[..., :half], sin[..., :half], *self.adapters())  # pyright: ignore[reportReturnType]


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, half: MlpHalf, *adapters: Tensor) -> Tensor:
        flat, (first, last) = x.reshape(-1, x.shape[-1]), half.split(adapters)
        normal, inverse = normalize(flat, half.norm.variance_epsilon)
        y, inner = half.first.forward(normal * half.norm.weight, first)
        gate, up = y.split(half.first.widths, dim=1)
        middle = functional.silu(gate).mul_(up)
        result, inner_last = half.last.forward(middle, last)
        ctx.save_for_backward(normal, inverse, y, inner, inner_last)
        ctx.half = half
        return torch.add(result, flat).view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        half: MlpHalf = ctx.half
        normal, inverse, y, inner, inner_last = ctx.saved_tensors
        gate, up = y.split(half.first.widths, dim=1)
        gated = functional.silu(gate)
        of_middle, of_last = half.last.backward(half.last.joined(normal, [gradient]), gated * up, inner_last)
        assert of_middle is not None
        both, (of_gate, of_up) = half.first.room(normal)
        torch.mul(of_middle, gated, out=of_up)
        torch.ops.aten.silu_backward.grad_input(of_middle.mul_(up), gate, grad_input=of_gate)
        of_x, of_first = _through_norm(half, both, gradient, normal, inverse, inner, ctx.needs_input_grad[0])
        return of_x, None, *of_first, *of_last


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, half: AttentionHalf, mask: Tensor | None, grid: Grid, cos: Tensor, sin: Tensor, *a: Tensor
    ) -> Tensor:
        flat, (first, last) = x.reshape(-1, x.shape[-1]), half.split(a)
        normal, inverse = normalize(flat, half.norm.variance_epsilon)
        y, inner = half.first.forward(normal * half.norm.weight, first)
        turned, width, widths = y.new_empty(y.shape), half.module.head_dim, half.first.widths
        _turn(y, turned, cos, sin, half, 1)
        turned[:, : widths[0]].mul_(half.module.scaling)
        query, key, value = (grid.heads(part, width) for part in grid.spread(turned).split(widths, dim=1))
        context, attended = attend(query, key, value, mask)
        context = grid.gather(context.transpose(1, 2).reshape(grid.batch * grid.columns, -1))
        result, inner_last = half.last.forward(context, last)
        ctx.save_for_backward(normal, inverse, cos, sin, context, inner, inner_last, *attended)
        ctx.half, ctx.grid = half, grid
        return torch.add(result, flat).view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        half, grid, width = ctx.half, ctx.grid, ctx.half.module.head_dim
        normal, inverse, cos, sin, context, inner, inner_last, *attended = ctx.saved_tensors
        of_context, of_last = half.last.backward(half.last.joined(normal, [gradient]), context, inner_last)
        of_qkv = attend_backward(grid.heads(grid.spread(of_context), width), *attended)
        joint = normal.new_empty(grid.batch * grid.columns, half.first.outputs)
        for place, value in zip(joint.split(half.first.widths, dim=1), of_qkv, strict=True):
            place = grid.heads(place, width)
            place.copy_(value.view(place.shape))
        joint = grid.gather(joint)
        joint[:, : half.first.widths[0]].mul_(half.module.scaling)
        both, _ = half.first.room(normal)
        _turn(joint, both[:, : half.first.outputs], cos, sin, half, -1)
        of_x, of_first = _through_norm(half, both, gradient, normal, inverse, inner, ctx.needs_input_grad[0])
        return of_x, None, None, None, None, None, *of_first, *of_last


def _turn(x: Tensor, out: Tensor, cos: Tensor, sin: Tensor, half: AttentionHalf, direction: int) -> None:
    """Rotate queries and keys of [T, N] and copy the values."""
    turned = sum(half.first.widths[:2])
    one, other = (part[:, :turned].view(len(x), -1, half.module.head_dim) for part in (x, out))
    rotate(one, cos, sin, other, direction)
    out[:, turned:].copy_(x[:, turned:])


def _through_norm(
    half: Half, both: Tensor, gradient: Tensor, normal: Tensor, inverse: Tensor, inner: Tensor, of_x: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """Gradient of a half's input, that of its output being added by the residual; and those of its first stack."""
    weight = half.norm.weight
    of_normal, of_adapters = half.first.backward(both, normal * weight, inner, of_x)
    if of_normal is None:
        return None, of_adapters
    of_flat = normalise_backward(of_normal.mul_(weight), normal, inverse)
    return of_flat.view(gradient.shape).add_(gradient), of_adapters
