"""Attention for short and medium texts on a CPU, as a few large products (`attention: grouped`).

softmax(q kᵀ / √d + mask) v (Vaswani et al., arXiv 1706.03762, eq. 1), where the query heads that share a key head
(Ainslie et al., arXiv 2305.13245) are rows of one product, so that keys are never repeated. torch's fused attention
needs 3 x as long for its backward pass on a CPU; it keeps no N x N matrix, so it takes over beyond `LONGEST` columns.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask

#: Name of this implementation among transformers'.
GROUPED = "grouped"

#: Columns beyond which torch's fused attention is taken.
LONGEST = 1024

#: Model types whose attention has nothing beside mask, scale and grouped heads.
SUPPORTED = ("gemma3_text", "llama", "mistral", "qwen2", "qwen3")


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """softmax(q kᵀ + mask) v, without a record for gradients.

    Args:
        query: [B, H, N, d], scaled already.
        key: [B, H / g, M, d], and value alike.
        value: see key.
        mask: [B, 1, N, M], added to the scores.

    Returns:
        [B, H, N, d], and what `attend_backward` needs.
    """
    batch, heads, length, width = query.shape
    groups = batch * key.shape[1]
    q = query.reshape(groups, -1, width)  # [groups, query heads of a group * N, d]
    k, v = key.reshape(groups, -1, width), value.reshape(groups, -1, width)  # [groups, M, d]
    scores = torch.bmm(q, k.transpose(1, 2))
    if mask is not None:
        scores.view(batch, heads, length, -1).add_(mask)
    weights = torch.softmax(scores, dim=-1)
    return torch.bmm(weights, v).view(query.shape), (q, k, v, weights)


def attend_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    """Gradients of q, k and v in the shapes that `attend` kept, for a gradient [B, H, N, d] of its output."""
    gradient = gradient.reshape(q.shape)
    of_weights = torch.bmm(gradient, v.transpose(1, 2))
    of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
    of_v = torch.bmm(weights.transpose(1, 2), gradient)
    return torch.bmm(of_scores, k), torch.bmm(of_scores.transpose(1, 2), q), of_v


class _Grouped(torch.autograd.Function):
    """Attention with its gradients of q, k and v."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        output, kept = attend(query * scale, key, value, mask)
        ctx.save_for_backward(*kept)
        ctx.shapes, ctx.scale = (query.shape, key.shape), scale
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        of_q, of_k, of_v = attend_backward(gradient, *ctx.saved_tensors)
        queries, keys = ctx.shapes
        return of_q.mul_(ctx.scale).view(queries), of_k.view(keys), of_v.view(keys), None, None


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' interface of an attention implementation.

    Args:
        module: the layer's attention.
        query: [B, H, N, d].
        key: [B, H / g, M, d], and value alike.
        value: see key.
        attention_mask: [B, 1, N, M], added to the scores.
        scaling: of the scores; None: 1 / √d.
        dropout: of the weights; above 0, torch's fused attention is taken.
        kwargs: of no influence here.

    Returns:
        [B, N, H, d], and None for the weights.
    """
    if key.shape[2] > LONGEST or dropout > 0:
        return sdpa_attention_forward(  # pyright: ignore[reportReturnType]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output: Tensor = _Grouped.apply(query, key, value, attention_mask, scale)  # pyright: ignore
    return output.transpose(1, 2), None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, eager_mask)
