"""Mutual knowledge distillation between the server's LLM and SLM.

Fan et al., "FedCoLLM: A Parameter-Efficient Federated Co-tuning Framework for Large and Small Language
Models", arXiv 2411.11707, eq. 4-6 and Algorithm 1:

    L_g = CE(z_g, y) + λ τ² KL(p_f ‖ p_g)      p_f detached
    L_f = CE(z_f, y) + λ τ² KL(p_g ‖ p_f)      p_g detached

Both models take their step on the same batch from the same pair of forward passes. Where their rows must be matched
first (different tokenizers, say), the modality's `align` does it, and the KL is over what it returns; each
cross-entropy is that of the model's own rows.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedcollm.config import DistillationConfig, ServerConfig
from fedcollm.modalities.base import Modality, Rows
from fedcollm.progress import track
from fedcollm.training.divergences import divergence, uncertainty
from fedcollm.training.fine_tuning import check_finite, check_finite_weights, check_loss, step_batches, step_count
from fedcollm.training.optimizers import Stepper


@dataclass(frozen=True)
class ModelPair:
    """The server's two models of one modality.

    Attributes:
        modality: reads examples for both of them.
        slm: g with adapter θ.
        llm: f with adapter ω; None where nothing is distilled.
    """

    modality: Modality
    slm: nn.Module
    llm: nn.Module | None = None

    def models(self) -> dict[str, nn.Module]:
        """Return role to model, for the roles that there are."""
        return {"slm": self.slm} | ({"llm": self.llm} if self.llm is not None else {})


@dataclass(frozen=True)
class Losses:
    """Parts of eq. 4-6 on one batch, each a scalar tensor; `kl` is KL(LLM ‖ SLM) as the SLM feels it."""

    slm: Tensor
    llm: Tensor
    kl: Tensor
    total: Tensor


def warmup_factor(round_index: int, rounds: int) -> float:
    """Return the factor of λ in a round: linear from 1 / `rounds` to 1, and 1 from then on.

    >>> [warmup_factor(index, 4) for index in (1, 2, 4, 5)]
    [0.25, 0.5, 1.0, 1.0]
    >>> warmup_factor(1, 0)
    1.0
    """
    return min(1.0, round_index / rounds) if rounds else 1.0


def mutual_losses(
    slm_loss: Tensor, llm_loss: Tensor, rows: Rows, settings: DistillationConfig, factor: float = 1.0
) -> Losses:
    """Return eq. 4-6 for both models.

    Args:
        slm_loss: supervised loss of the SLM, CE(z_g, y).
        llm_loss: the same of the LLM.
        rows: what both models say, row by row; unlabelled rows count in the KL as well.
        settings: λ of both losses, τ, divergence, and whether a model is taught only where the other one knows better.
        factor: of both λ, in this round.

    Returns:
        The supervised losses, the SLM's KL, and the total to backpropagate: since each model's KL detaches the other
        one, the gradients of L_g + L_f are those of L_g and of L_f apart. With λ = 0 no KL is computed.
    """
    weight, llm_weight = (factor * value for value in settings.weights)
    total, kl = slm_loss + llm_loss, torch.zeros(())
    slm_taught = llm_taught = None
    if settings.teach_where_better:
        slm_unsure, llm_unsure = uncertainty(rows.slm, rows.slm_targets), uncertainty(rows.llm, rows.llm_targets)
        slm_taught, llm_taught = llm_unsure < slm_unsure, slm_unsure < llm_unsure
    if weight:
        kl = divergence(rows.llm, rows.slm, settings.temperature, settings.divergence, slm_taught)
        total = total + weight * kl
    if llm_weight:
        total = total + llm_weight * divergence(
            rows.slm, rows.llm, settings.temperature, settings.divergence, llm_taught
        )
    return Losses(slm_loss, llm_loss, kl, total)


def distil(
    pair: ModelPair, public: Sequence[Any], settings: ServerConfig, seed: int, round_index: int = 1
) -> dict[str, float]:
    """Tune θ and ω on the public set D_a by mutual distillation (Algorithm 1, server side).

    Args:
        pair: both models; left in evaluation mode.
        public: D_a, labelled and unlabelled examples.
        settings: passes, batches, each model's own AdamW, and the distillation itself.
        seed: decides order and dropout.
        round_index: 1 for the first round; matters where λ grows over the first rounds.

    Returns:
        Means over the steps of the last epoch: `slm` and `llm` (supervised losses), `kl`.

    Raises:
        NonFiniteError: a loss became NaN or infinite.
    """
    generator = random.Random(seed)
    torch.manual_seed(seed)
    models = pair.models()
    per_epoch = step_count(public, settings)
    stepper = Stepper(models, settings, settings.epochs * per_epoch, f"distillation, round {round_index}")
    groups = (
        group for _ in range(settings.epochs) for group in step_batches(pair.modality, public, settings, generator)
    )
    factor = warmup_factor(round_index, settings.distillation.warmup_rounds)
    history: list[Losses] = []
    for model in models.values():
        model.train()
    for group in track(groups, "distillation", total=settings.epochs * per_epoch):
        stepper.zero_grad()
        losses, rows = _accumulate(pair, group, settings.distillation, factor)
        history.append(losses)
        named = {"slm": losses.slm, "llm": losses.llm, "kl": losses.kl}
        stepper.step(named, rows, partial(check_loss, "distillation", **named, total=losses.total))
    for role, model in models.items():
        model.eval()
        check_finite_weights(f"distillation, {role.upper()}", model)
    last = history[-per_epoch:]
    means = {name: sum(getattr(e, name).item() for e in last) / max(len(last), 1) for name in ("slm", "llm", "kl")}
    check_finite("distillation", **means)
    return means


def _accumulate(
    pair: ModelPair, batches: Sequence[Any], settings: DistillationConfig, factor: float
) -> tuple[Losses, int]:
    """Add up the gradients of a step's batches: those of each loss's mean over all rows that it counts.

    Returns:
        The losses of the step, without their graph, and the number of the SLM's labelled rows.
    """
    modality, sums = pair.modality, []
    labelled = {
        role: [modality.of(role).labelled(modality.part(batch, role)) for batch in batches] for role in pair.models()
    }
    shares = [_shares(counts) for counts in (*labelled.values(), [modality.rows(batch) for batch in batches])]
    for batch, slm_share, llm_share, kl_share in zip(batches, *shares, strict=True):
        slm_logits, llm_logits, slm_loss, llm_loss = _outputs(pair, batch)
        rows = modality.align(batch, slm_logits, llm_logits)
        losses = mutual_losses(slm_loss * slm_share, llm_loss * llm_share, rows, settings, factor * kl_share)
        losses.total.backward()
        parts = (losses.slm, losses.llm, losses.kl.to(losses.slm.device) * kl_share, losses.total)
        sums.append(torch.stack([part.detach() for part in parts]))
    return Losses(*torch.stack(sums).sum(0)), sum(labelled["slm"])


def _shares(counts: Sequence[int]) -> list[float]:
    """Return each count's share of all of them; equal shares of nothing.

    >>> _shares([1, 3]), _shares([0]), _shares([5])
    ([0.25, 0.75], [1.0], [1.0])
    """
    total = sum(counts)
    return [count / total if total else 1 / len(counts) for count in counts]


def _outputs(pair: ModelPair, batch: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return both models' logits and supervised losses on one batch, on the SLM's device."""
    modality = pair.modality
    outputs = []
    for role, model in pair.models().items():
        own, part = modality.of(role), modality.part(batch, role)
        logits = own.logits(model, part)
        outputs.append((logits, own.loss(logits, part)))
    (slm_logits, slm_loss), (llm_logits, llm_loss) = outputs
    device = slm_logits.device
    return slm_logits, llm_logits.to(device), slm_loss, llm_loss.to(device)
