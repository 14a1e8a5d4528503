"""The mean of the clients' LoRA products B_k A_k, instead of separate means of B_k and of A_k.

Mean(B_k) mean(A_k) is not mean(B_k A_k). FlexLoRA (Bai et al., arXiv 2402.11505) computes the latter, and factors it
again by truncated SVD. The result is the closest of all adapters of that rank, which FedEx-LoRA (Singhal et al.,
arXiv 2410.09432) calls the best inexact approximation. Here, the product is never formed: its stacked factors are
enough.

If clients have different ranks, weights that sum to one over all clients would let every component that some clients
lack shrink, round by round ("rank collapse", Wu et al., arXiv 2602.13486). The remedy of that paper is used here: the
weights of a component sum to one over the clients that have it.

The A of a convolution is a convolution with its kernel, [r, in, kh, kw], and its B one of 1 x 1, [out, r, 1, 1]. Their
composition is the convolution with the kernel B A, where A is read as [r, in kh kw] and B as [out, r], so that the same
holds of it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedcollm.errors import UserError
from fedcollm.federation.aggregation.mean import WeightedMean
from fedcollm.federation.upload_format import component_axis
from fedcollm.messages import Adapter

_linalg: Any = torch.linalg  # has no type annotations


class ProductMean:
    """The adapter that is closest to Σ w_k B_k A_k / Σ w_k, for every pair of A and B; other tensors get a plain mean.

    Clients may have any rank, see `stacked`. All factors that were added are held until the end. The columns of the
    resulting B are orthogonal, the longest first, and the rows of A are orthonormal, so that a component of length zero
    can still be trained.

    Args:
        theta: θ, as it was broadcast; the shapes of its tensors determine the rank.

    Raises:
        UserError: B A is no product of matrices, as in a convolution in groups.
    """

    def __init__(self, theta: Adapter):
        self._theta = theta
        if odd := [name for name in theta if component_axis(name) == 1 and not _is_product(name, theta)]:
            raise UserError(
                f"federation.aggregation: product needs a B A that is a product of matrices, and tensor {odd[0]} has "
                f"the shape {list(theta[odd[0]].shape)}, as in a convolution in groups. Set federation.aggregation: "
                "mean, or leave this layer out of slm.adapter.targets."
            )
        self._factors: dict[str, list[Tensor]] = {name: [] for name in theta if component_axis(name) is not None}
        self._weights: list[float] = []
        self._others = WeightedMean()

    def add(self, adapter: Adapter, weight: float) -> None:
        """Add one client's adapter."""
        for name, factors in self._factors.items():
            factors.append(adapter[name].flatten(1))
        self._others.add({n: tensor for n, tensor in adapter.items() if n not in self._factors}, weight)
        self._weights.append(weight)

    def value(self) -> Adapter:
        """Return the mean of all adapters that were added."""
        mean = self._others.value()
        for name_b in (name for name in self._factors if component_axis(name) == 1):
            name_a = name_b.replace("lora_B", "lora_A")
            theta_b, theta_a = self._theta[name_b].flatten(1), self._theta[name_a].flatten(1)
            pairs = list(zip(self._factors[name_b], self._factors[name_a], strict=True))
            b, a = closest(*stacked(pairs, self._weights, (theta_b, theta_a)), len(theta_a))
            mean[name_b] = _filled(b, torch.zeros_like(theta_b), 1)
            mean[name_a] = _filled(a, theta_a, 0)
        return {name: mean[name].reshape(whole.shape) for name, whole in self._theta.items()}


def stacked(
    pairs: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float], theta: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return L and R with L R = Σ_c Σ_k w_k b_kc a_kc / Σ_k w_k, where k runs over the clients that have component c.

    Args:
        pairs: B_k, [N, r_k], and A_k, [r_k, K], of each client; a component c is a column b_kc and a row a_kc.
        weights: w_k.
        theta: B, [N, r], and A, [r, K], of θ, which supply the last components if no client has them.

    Returns:
        L, [N, R], and R, [R, K], in float64. R is Σ r_k plus the number of components that θ supplies.
    """
    totals = torch.zeros(theta[0].shape[1], dtype=torch.float64)
    for (b, _), weight in zip(pairs, weights, strict=True):
        totals[: b.shape[1]] += weight
    largest = max(b.shape[1] for b, _ in pairs)
    scaled = [b.double() * (weight / totals[: b.shape[1]]) for (b, _), weight in zip(pairs, weights, strict=True)]
    left = torch.cat([*scaled, theta[0][:, largest:].double()], dim=1)
    return left, torch.cat([*(a.double() for _, a in pairs), theta[1][largest:].double()])


def closest(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the truncated SVD of L R (Eckart and Young 1936) without forming L R: O((N + K) R²).

    Args:
        left: L, [N, R].
        right: R, [R, K].
        rank: r, the largest number of components to keep.

    Returns:
        B = U Σ, [N, m], and A = Vᵀ, [m, K], with m = min(r, N, R, K).
    """
    q_left, s_left = _linalg.qr(left)
    q_right, s_right = _linalg.qr(right.T)
    u, sigma, vt = _linalg.svd(s_left @ s_right.T, full_matrices=False)
    return q_left @ (u[:, :rank] * sigma[:rank]), vt[:rank] @ q_right.T


def _is_product(name_b: str, theta: Adapter) -> bool:
    """Return whether B, [out, r] or [out, r, 1, 1], has a column for every row of its A."""
    b, a = theta[name_b], theta.get(name_b.replace("lora_B", "lora_A"))
    return a is not None and b.dim() >= 2 and a.dim() >= 2 and b.shape[1] == len(a) and b[0, 0].numel() == 1


def _filled(part: Tensor, whole: Tensor, axis: int) -> Tensor:
    """Return `whole` with its first components replaced by `part`, in the dtype of `whole`."""
    count = part.shape[axis]
    return torch.cat([part.to(whole.dtype), whole.narrow(axis, count, whole.shape[axis] - count)], dim=axis)
