"""Divergences of a student's distribution from its teacher's, computed row by row.

Each divergence is a row of `DIVERGENCES` in `config/choices.py`, under the same name.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from fedcollm.modalities.base import UNLABELLED

#: α of the skewed divergences: the value that DistiLLM recommends (arXiv 2402.03898, section 4).
SKEW = 0.1


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(p ‖ q) for teacher p and student q, the paper's eq. 5: [P], from log-probabilities [P, V]."""
    return _kl(teacher, student)


def reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(q ‖ p), with which the student seeks one mode of the teacher (MiniLLM, Gu et al., arXiv 2306.08543)."""
    return _kl(student, teacher)


def jensen_shannon(teacher: Tensor, student: Tensor) -> Tensor:
    """Return (KL(p ‖ m) + KL(q ‖ m)) / 2, where m = (p + q) / 2 (GKD, Agarwal et al., arXiv 2306.13649, β = 1/2)."""
    middle = _mixed(teacher, student, 0.5)
    return (_kl(teacher, middle) + _kl(student, middle)) / 2


def skew_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(p ‖ α p + (1 - α) q), where α = `SKEW` (DistiLLM, Ko et al., arXiv 2402.03898, eq. 4)."""
    return _kl(teacher, _mixed(teacher, student, SKEW))


def skew_reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(q ‖ (1 - α) p + α q), where α = `SKEW` (DistiLLM, Ko et al., arXiv 2402.03898, section 3.1)."""
    return _kl(student, _mixed(student, teacher, SKEW))


def total_variation(teacher: Tensor, student: Tensor) -> Tensor:
    """Return ½ Σ |p - q|, at most 1 (f-DISTILL, Wen et al., arXiv 2307.15190, section 3.1): it is symmetric.

    Args:
        teacher: [P, V] log-probabilities log p.
        student: [P, V] log-probabilities log q.
    """
    return (teacher.exp() - student.exp()).abs().sum(-1) / 2


DIVERGENCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "skew_kl": skew_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "total_variation": total_variation,
}


def divergence(
    teacher: Tensor,
    student: Tensor,
    temperature: float = 1.0,
    kind: str = "forward_kl",
    taught: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Return τ² times the divergence of the softened distributions, as a mean over rows.

    Args:
        teacher: [P, V] logits; the teacher gets no gradient.
        student: [P, V] logits.
        temperature: τ; the factor τ² keeps the scale of the gradient (Hinton et al., arXiv 1503.02531).
        kind: a key of `DIVERGENCES`.
        taught: [P] bool or weights from 0 to 1, how much each row counts; the mean is over all rows nevertheless. None
            means that all rows count.
        weights: [P], for a weighted mean. None means that all rows weigh the same.

    Returns:
        A scalar. It is 0 if there are no rows. It is also 0 for equal logits: exactly for the forward and the reverse
        KL, up to rounding for the other divergences.
    """
    log_teacher = functional.log_softmax(teacher.detach() / temperature, dim=-1)
    log_student = functional.log_softmax(student / temperature, dim=-1)
    rows = DIVERGENCES[kind](log_teacher, log_student)
    if taught is not None:
        rows = rows * taught
    if weights is not None:
        return temperature**2 * _weighted_mean(rows, weights)
    return temperature**2 * rows.sum() / max(len(student), 1)


def distance(teacher: Tensor, student: Tensor, weights: Tensor, taught: Tensor | None = None) -> Tensor:
    """Return the L1 distance of continuous outputs, as a weighted mean over rows; 0 if no row has a weight.

    Args:
        teacher: [P, D]; the teacher gets no gradient.
        student: [P, D].
        weights: [P], how much each row counts.
        taught: as in `divergence`.
    """
    rows = (student - teacher.detach()).abs().sum(-1)
    return _weighted_mean(rows if taught is None else rows * taught, weights)


def _weighted_mean(rows: Tensor, weights: Tensor) -> Tensor:
    return (weights * rows).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def uncertainty(logits: Tensor, targets: Tensor) -> Tensor:
    """Return how uncertain a model is on each row, [P] in nats: its cross-entropy, or its entropy on an unlabelled row.

    The cross-entropy is what DualMinCE of FedMKT compares (Fan et al., arXiv 2406.02224, section 3.3). The less certain
    model is taught; if both are equally uncertain, neither is.

    Args:
        logits: [P, V]; they get no gradient.
        targets: [P] int64, `UNLABELLED` where there is no label.
    """
    log = functional.log_softmax(logits.detach(), dim=-1)
    loss = -log.gather(-1, targets.clamp(min=0)[:, None])[:, 0]
    return torch.where(targets != UNLABELLED, loss, -(log.exp() * log).sum(-1))


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """Return KL(first ‖ second) per row: [P], from log-probabilities [P, V]."""
    return (first.exp() * (first - second)).sum(-1)


def _mixed(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Return log(share p + (1 - share) q), given log p and log q."""
    return torch.logaddexp(first + math.log(share), second + math.log1p(-share))
