"""Mutual knowledge distillation between the server's LLM and SLM.

Fan et al., "FedCoLLM: A Parameter-Efficient Federated Co-tuning Framework for Large and Small Language
Models", arXiv 2411.11707, eq. 4-6 and Algorithm 1:

    L_g = CE(z_g, y) + λ τ² KL(p_f ‖ p_g)      p_f detached
    L_f = CE(z_f, y) + λ τ² KL(p_g ‖ p_f)      p_g detached

Both models take their step on the same batch from the same pair of forward passes. Where they have different
tokenizers, the KL is that of the outcomes which they share (`tasks/bridge.py`), each CE that of their own tokens.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedcollm.modalities.base import UNLABELLED, Task
from fedcollm.modalities.text.cross_tokenizer import SharedOutcomes, TokenizerBridge
from fedcollm.progress import track
from fedcollm.training.fine_tuning import (
    batch_count,
    check_finite,
    check_finite_weights,
    clip,
    cross_entropy,
    minibatches,
    adamw,
)

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon", "skew_kl", "skew_reverse_kl"]

#: α of the skewed divergences, the value that DistiLLM recommends (arXiv 2402.03898, section 4).
SKEW = 0.1


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first ‖ second), a row: [P] from log-probabilities [P, V]."""
    return (first.exp() * (first - second)).sum(-1)


def _mixed(first: Tensor, second: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) q) from log p and log q."""
    return torch.logaddexp(first + math.log(share), second + math.log1p(-share))


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(p ‖ q) of teacher p and student q, the paper's eq. 5: [P] from log-probabilities [P, V]."""
    return _kl(teacher, student)


def reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(q ‖ p): the student seeks one mode of the teacher (MiniLLM, Gu et al., arXiv 2306.08543)."""
    return _kl(student, teacher)


def jensen_shannon(teacher: Tensor, student: Tensor) -> Tensor:
    """(KL(p ‖ m) + KL(q ‖ m)) / 2 with m = (p + q) / 2 (GKD, Agarwal et al., arXiv 2306.13649, with β = 1/2)."""
    middle = _mixed(teacher, student, 0.5)
    return (_kl(teacher, middle) + _kl(student, middle)) / 2


def skew_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(p ‖ α p + (1 - α) q), α = `SKEW` (DistiLLM, Ko et al., arXiv 2402.03898, eq. 4)."""
    return _kl(teacher, _mixed(teacher, student, SKEW))


def skew_reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(q ‖ (1 - α) p + α q), α = `SKEW` (DistiLLM, Ko et al., arXiv 2402.03898, section 3.1)."""
    return _kl(student, _mixed(student, teacher, SKEW))


_DIVERGENCES: Mapping[Divergence, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "skew_kl": skew_kl,
    "skew_reverse_kl": skew_reverse_kl,
}


def divergence(
    teacher: Tensor,
    student: Tensor,
    temperature: float = 1.0,
    kind: Divergence = "forward_kl",
    taught: Tensor | None = None,
) -> Tensor:
    """τ² times the divergence between softened distributions, mean over rows; the teacher gets no gradient.

    Args:
        teacher: [P, V] logits; detached here.
        student: [P, V] logits.
        temperature: τ; the factor τ² keeps the gradient's scale (Hinton et al., arXiv 1503.02531).
        kind: name of one of the functions above.
        taught: [P] bool, rows that count; the others stay in the mean as zeros. None: all.

    Returns:
        A scalar; 0 for no rows and for equal logits: exactly so for the two KL, up to rounding for the mixtures.
    """
    log_teacher = functional.log_softmax(teacher.detach() / temperature, dim=-1)
    log_student = functional.log_softmax(student / temperature, dim=-1)
    rows = _DIVERGENCES[kind](log_teacher, log_student)
    if taught is not None:
        rows = rows * taught
    return temperature**2 * rows.sum() / max(len(student), 1)


def uncertainty(logits: Tensor, targets: Tensor) -> Tensor:
    """What a model lacks on each row, [P] in nats: its cross-entropy, or, of unlabelled rows, its entropy.

    The first is what DualMinCE of FedMKT compares (Fan et al., arXiv 2406.02224, section 3.3); the second needs no
    label. Whoever lacks less teaches; where both lack the same, nobody does.

    Args:
        logits: [P, V]; no gradient comes back.
        targets: [P] int64, `UNLABELLED` where there is none.
    """
    log = functional.log_softmax(logits.detach(), dim=-1)
    loss = -log.gather(-1, targets.clamp(min=0)[:, None])[:, 0]
    return torch.where(targets != UNLABELLED, loss, -(log.exp() * log).sum(-1))


def ramp(round_index: int, rounds: int) -> float:
    """Factor of λ in a round: linear from 1 / `rounds` to 1, and 1 from then on.

    >>> [ramp(index, 4) for index in (1, 2, 4, 5)]
    [0.25, 0.5, 1.0, 1.0]
    >>> ramp(1, 0)
    1.0
    """
    return min(1.0, round_index / rounds) if rounds else 1.0


@dataclass(frozen=True)
class Losses:
    """Parts of eq. 4-6 on one batch, each a scalar tensor; `kl` is KL(LLM ‖ SLM) as the SLM feels it."""

    slm: Tensor
    llm: Tensor
    kl: Tensor
    total: Tensor


def mutual_losses(
    slm_logits: Tensor,
    llm_logits: Tensor,
    targets: Tensor,
    *,
    weight: float = 1.0,
    llm_weight: float | None = None,
    temperature: float = 1.0,
    kind: Divergence = "forward_kl",
    teach_where_better: bool = False,
    llm_targets: Tensor | None = None,
    common: SharedOutcomes | None = None,
) -> Losses:
    """Eq. 4-6 for both roles.

    Args:
        slm_logits: z_g, [P, V].
        llm_logits: z_f, [P, V].
        targets: [P] int64, `UNLABELLED` where there is none: such rows count in KL, not in CE.
        weight: λ of the SLM's loss; 0 leaves plain cross-entropy, and no KL is computed.
        llm_weight: λ of the LLM's loss; None means the same as `weight`.
        temperature: τ.
        kind: the divergence.
        teach_where_better: a role is taught only where the other one knows better (`uncertainty`).
        llm_targets: [Q], where the LLM has rows of its own, `llm_logits` [Q, W]; None: `targets`.
        common: what the two are compared by instead of their logits, where they have different tokenizers.

    Returns:
        CE of each role, the SLM's KL, and the total to backpropagate: since each role's KL detaches
        the other, the gradients of L_g + L_f are those of L_g and L_f apart.
    """
    llm_weight = weight if llm_weight is None else llm_weight
    llm_targets = targets if llm_targets is None else llm_targets
    slm_loss, llm_loss = cross_entropy(slm_logits, targets), cross_entropy(llm_logits, llm_targets)
    if common is not None:
        slm_logits, llm_logits, targets, llm_targets = common
    total, kl = slm_loss + llm_loss, torch.zeros(())
    slm_taught = llm_taught = None
    if teach_where_better:
        slm_lacks, llm_lacks = uncertainty(slm_logits, targets), uncertainty(llm_logits, llm_targets)
        slm_taught, llm_taught = llm_lacks < slm_lacks, slm_lacks < llm_lacks
    if weight:
        kl = divergence(llm_logits, slm_logits, temperature, kind, slm_taught)
        total = total + weight * kl
    if llm_weight:
        total = total + llm_weight * divergence(slm_logits, llm_logits, temperature, kind, llm_taught)
    return Losses(slm_loss, llm_loss, kl, total)


def distil_mutually(
    task: Task,
    slm: nn.Module,
    llm: nn.Module,
    public: Sequence[Any],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    weight: float = 1.0,
    llm_weight: float | None = None,
    temperature: float = 1.0,
    kind: Divergence = "forward_kl",
    teach_where_better: bool = False,
    max_grad_norm: float | None = None,
    bridge: TokenizerBridge | None = None,
) -> dict[str, float]:
    """Tune θ and ω on the public set D_a by mutual distillation (Algorithm 1, server side).

    Args:
        task: the modality, in the SLM's tokens.
        slm: g with adapter θ; left in evaluation mode.
        llm: f with adapter ω; left in evaluation mode.
        public: D_a, labelled and unlabelled examples.
        epochs: passes over D_a.
        batch_size: examples a step, the same for both models.
        learning_rate: of each model's own fresh AdamW.
        seed: decides order and dropout.
        weight: λ.
        llm_weight: λ of the LLM's loss, if it differs.
        temperature: τ.
        kind: the divergence.
        teach_where_better: teach a role only where the other one knows better.
        max_grad_norm: longest gradient of a step, of each model by itself (`training.clip`).
        bridge: to the LLM's own task, where it has another tokenizer.

    Returns:
        Means over the steps of the last epoch: `slm` and `llm` (cross-entropy), `kl`.

    Raises:
        NonFiniteError: a loss became NaN or infinite.
    """
    generator = random.Random(seed)
    torch.manual_seed(seed)
    optimizers = [adamw(model, learning_rate) for model in (slm, llm)]
    batches = (batch for _ in range(epochs) for batch in minibatches(bridge or task, public, batch_size, generator))
    count = batch_count(public, batch_size)
    history: list[dict[str, float]] = []
    slm.train()
    llm.train()
    for batch in track(batches, "distillation", total=epochs * count):
        losses = mutual_losses(
            **_outputs(task, slm, llm, batch, bridge),
            weight=weight,
            llm_weight=llm_weight,
            temperature=temperature,
            kind=kind,
            teach_where_better=teach_where_better,
        )
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses.total.backward()
        history.append({"slm": losses.slm.item(), "llm": losses.llm.item(), "kl": losses.kl.item()})
        check_finite("distillation", **history[-1], total=losses.total.item())
        for model, optimizer in zip((slm, llm), optimizers, strict=True):
            clip(model, max_grad_norm)
            optimizer.step()
    slm.eval()
    llm.eval()
    check_finite_weights("distillation, SLM", slm)
    check_finite_weights("distillation, LLM", llm)
    last = history[-count:]
    return {name: sum(entry[name] for entry in last) / max(len(last), 1) for name in ("slm", "llm", "kl")}


def _outputs(task: Task, slm: nn.Module, llm: nn.Module, batch: Any, bridge: TokenizerBridge | None) -> dict[str, Any]:
    """What `mutual_losses` compares on one batch, on the SLM's device."""
    own, other = (batch.slm, batch.llm) if bridge else (batch, batch)
    slm_logits = task.logits(slm, own)
    device = slm_logits.device
    llm_logits = (bridge.llm if bridge else task).logits(llm, other).to(device)
    outputs: dict[str, Any] = {
        "slm_logits": slm_logits,
        "llm_logits": llm_logits,
        "targets": task.targets(own).to(device),
    }
    if bridge:
        outputs["llm_targets"] = bridge.llm.targets(other).to(device)
        outputs["common"] = bridge.common(batch, slm_logits, llm_logits)
    return outputs
