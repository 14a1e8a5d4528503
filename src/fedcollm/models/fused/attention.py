"""Attention for short and medium texts on a CPU, as a few large matrix products (`attention: grouped`).

It computes softmax(q kᵀ / √d + mask) v (Vaswani et al., arXiv 1706.03762, eq. 1). The query heads that share a key head
(Ainslie et al., arXiv 2305.13245) are rows of one product, so that keys are never repeated. On a CPU, the backward pass
of torch's fused attention takes 3 times as long. In return, it never stores an N x N matrix, so it is used for inputs
of more than `LONGEST` columns.
"""

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn

#: The name of this implementation among those of transformers.
GROUPED = "grouped"

#: The largest number of columns for which grouped attention is used; above it, torch's fused attention is.
LONGEST = 1024

#: The model types whose attention consists of a mask, a scale and grouped heads, and nothing else.
SUPPORTED = ("gemma3_text", "llama", "mistral", "qwen2", "qwen3")


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return softmax(q kᵀ + mask) v. Autograd does not record it.

    Args:
        query: [B, H, N, d], already scaled.
        key: [B, H / g, M, d], where g query heads share a key head.
        value: [B, H / g, M, d].
        mask: [B, 1, N, M], added to the scores.

    Returns:
        The output, [B, H, N, d], and the tensors that `attend_backward` needs.
    """
    batch, heads, length, width = query.shape
    groups = batch * key.shape[1]
    q = query.reshape(groups, -1, width)  # [groups, query heads per group * N, d]
    k, v = key.reshape(groups, -1, width), value.reshape(groups, -1, width)  # [groups, M, d]
    scores = torch.bmm(q, k.transpose(1, 2))
    if mask is not None:
        scores.view(batch, heads, length, -1).add_(mask)
    weights = torch.softmax(scores, dim=-1)
    return torch.bmm(weights, v).view(query.shape), (q, k, v, weights)


def attend_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of q, k and v.

    Args:
        gradient: [B, H, N, d], the gradient of the output of `attend`.
        q: [groups, query heads per group * N, d], as `attend` returned it.
        k: [groups, M, d], as `attend` returned it.
        v: [groups, M, d], as `attend` returned it.
        weights: [groups, query heads per group * N, M], the attention weights.

    Returns:
        Three tensors in the shapes of q, k and v.
    """
    gradient = gradient.reshape(q.shape)
    of_weights = torch.bmm(gradient, v.transpose(1, 2))
    of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
    of_v = torch.bmm(weights.transpose(1, 2), gradient)
    return torch.bmm(of_scores, k), torch.bmm(of_scores.transpose(1, 2), q), of_v


class _Grouped(torch.autograd.Function):
    """Attention with gradients of q, k and v."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        output, kept = attend(query * scale, key, value, mask)
        ctx.save_for_backward(*kept)
        ctx.shapes, ctx.scale = (query.shape, key.shape), scale
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        of_q, of_k, of_v = attend_backward(grad_outputs[0], *ctx.saved_tensors)
        queries, keys = ctx.shapes
        return of_q.mul_(ctx.scale).view(queries), of_k.view(keys), of_v.view(keys), None, None


def grouped_attention(  # its parameters are those that transformers passes to every attention implementation
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention as an implementation that transformers can call.

    Args:
        module: the attention module of the layer.
        query: [B, H, N, d].
        key: [B, H / g, M, d], where g query heads share a key head.
        value: [B, H / g, M, d].
        attention_mask: [B, 1, N, M], added to the scores.
        scaling: factor of the scores; None means 1 / √d.
        dropout: dropout of the attention weights; above 0, torch's fused attention is used.
        kwargs: passed on to torch's fused attention, and ignored otherwise.

    Returns:
        The output, [B, N, H, d], and None in place of the attention weights.
    """
    if key.shape[2] > LONGEST or dropout > 0:
        return _fused_attention(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output: Tensor = cast(Any, _Grouped).apply(query, key, value, attention_mask, scale)
    return output.transpose(1, 2), None


def _fused_attention(*arguments: Any, **keywords: Any) -> tuple[Tensor, None]:
    """Compute torch's fused attention as transformers does."""
    from transformers.integrations import sdpa_attention

    return cast(Any, sdpa_attention).sdpa_attention_forward(*arguments, **keywords)


@functools.cache
def register() -> None:
    """Make `attention: grouped` known to transformers, which is imported only here because that takes seconds."""
    from transformers import AttentionInterface, masking_utils
    from transformers.masking_utils import AttentionMaskInterface

    cast(Any, AttentionInterface).register(GROUPED, grouped_attention)
    cast(Any, AttentionMaskInterface).register(GROUPED, cast(Any, masking_utils).eager_mask)
