"""Our layers with their pointwise parts by torch.compile, and whole layers of PEFT by torch.compile.

The same formulas as `MlpHalf` and `_RmsNorm` in src/fedcollm/models/fused; only what runs between the products is
compiled.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from fedcollm.models.fused import layers, patch


def _weighted_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return n = x / √(mean(x²) + ε), 1 / √... in float32, and n w."""
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    normal = (wide * inverse).to(x.dtype)
    return normal, inverse, normal * weight


def _weighted_norm_backward(of_weighted: Tensor, weight: Tensor, normal: Tensor, inverse: Tensor) -> Tensor:
    """Return the gradient of x, in float32, from that of n w."""
    gradient, wide = (of_weighted * weight).float(), normal.float()
    return (gradient - wide * (gradient * wide).mean(-1, keepdim=True)) * inverse


def _gate_up(y: Tensor, width: int) -> Tensor:
    """Return silu(gate) * up of [T, 2 width], gate beside up."""
    return functional.silu(y[:, :width]) * y[:, width:]


def _gate_up_backward(of_middle: Tensor, y: Tensor, width: int) -> Tensor:
    """Return the gradient of gate beside up, [T, 2 width]."""
    gate, up, outer = y[:, :width].float(), y[:, width:].float(), of_middle.float()
    sigmoid = torch.sigmoid(gate)
    of_gate = outer * up * sigmoid * (1 + gate * (1 - sigmoid))
    return torch.cat([of_gate, outer * gate * sigmoid], 1).to(y.dtype)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


class _CompiledMlp(torch.autograd.Function):
    """`fedcollm.models.fused.layers._Mlp`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, half: Any, *adapters: Tensor) -> Tensor:
        flat, (first, last) = x.reshape(-1, x.shape[-1]), half.split(adapters)
        norm = _compiled(_weighted_norm)
        normal, inverse, weighted = norm(flat, half.norm.weight, half.norm.variance_epsilon)
        y, inner = half.first.forward(weighted, first)
        middle = _compiled(_gate_up)(y, half.first.widths[0])
        result, inner_last = half.last.forward(middle, last)
        ctx.save_for_backward(normal, inverse, y, inner, inner_last, weighted, middle)
        ctx.half = half
        return torch.add(result, flat).view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        half = ctx.half
        normal, inverse, y, inner, inner_last, weighted, middle = ctx.saved_tensors
        of_middle, of_last = half.last.backward(half.last.joined(normal, [gradient]), middle, inner_last)
        both, _ = half.first.room(normal)
        both[:, : half.first.outputs].copy_(_compiled(_gate_up_backward)(of_middle, y, half.first.widths[0]))
        of_weighted, of_first = half.first.backward(both, weighted, inner, True)
        of_x = _compiled(_weighted_norm_backward)(of_weighted, half.norm.weight, normal, inverse)
        of_x = of_x.to(gradient.dtype).view(gradient.shape) + gradient
        return of_x, None, *of_first, *of_last


class _CompiledNorm(torch.autograd.Function):
    """`fedcollm.models.fused.patch._RmsNorm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        normal, inverse, weighted = _compiled(_weighted_norm)(x, weight, epsilon)
        ctx.save_for_backward(normal, inverse, weight)
        return weighted

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        normal, inverse, weight = ctx.saved_tensors
        return _compiled(_weighted_norm_backward)(gradient, weight, normal, inverse).to(gradient.dtype), None, None


@contextlib.contextmanager
def pointwise_compiled(model: Any) -> Iterator[None]:
    """Compile norms, activations and rotary positions of our layers and of transformers' attention."""
    from transformers.models.llama import modeling_llama
    from transformers.models.qwen2 import modeling_qwen2

    rotary = torch.compile(modeling_llama.apply_rotary_pos_emb, dynamic=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(layers, "_Mlp", _CompiledMlp))
        stack.enter_context(mock.patch.object(patch, "_RmsNorm", _CompiledNorm))
        for module in (modeling_llama, modeling_qwen2):
            stack.enter_context(mock.patch.object(module, "apply_rotary_pos_emb", rotary))
        yield


@contextlib.contextmanager
def layers_compiled(model: Any) -> Iterator[None]:
    """Compile every decoder layer as a whole."""
    decoder = model.get_base_model().model.layers
    torch._dynamo.reset()
    for layer in decoder:
        layer.compile(dynamic=False)
    try:
        yield
    finally:
        for layer in decoder:
            layer._compiled_call_impl = None
