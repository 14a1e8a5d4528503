"""Mutual knowledge distillation between the server's LLM and SLM.

Fan et al., "FedCoLLM: A Parameter-Efficient Federated Co-tuning Framework for Large and Small Language
Models", arXiv 2411.11707, eq. 4-6 and Algorithm 1:

    L_g = CE(z_g, y) + λ τ² KL(p_f ‖ p_g)      p_f detached
    L_f = CE(z_f, y) + λ τ² KL(p_g ‖ p_f)      p_g detached

Both models step on the same batch, from the same pair of forward passes. If their rows have to be matched first, for
example because the models have different tokenizers, the modality's `align` matches them. The KL is computed on the
matched rows, and each cross-entropy on the model's own rows.

If the models also have continuous outputs, such as boxes, the weighted mean of their L1 distance is added to the KL of
each direction, with the same λ and the teacher detached (`Rows.values`).
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from fedcollm.config import DistillationConfig, ServerConfig
from fedcollm.memory import give_back
from fedcollm.modalities.base import Modality, Rows, matched, outputs
from fedcollm.progress import track
from fedcollm.training.batches import step_batches, step_count
from fedcollm.training.divergences import distance, divergence, uncertainty
from fedcollm.training.fine_tuning import check_finite, check_finite_weights, check_loss
from fedcollm.training.optimizers import Stepper
from fedcollm.training.trust import Trust, TrustedBatch, TrustingCollator

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class ModelPair:
    """The server's two models of one modality.

    Attributes:
        modality: makes batches, outputs and losses for both models.
        slm: g with its adapter θ.
        llm: f with its adapter ω; None if there is no distillation.
    """

    modality: Modality
    slm: "PeftModel"
    llm: "PeftModel | None" = None

    def models(self) -> "dict[str, PeftModel]":
        """Return each model by its role, `slm` or `llm`; a missing LLM is left out."""
        return {"slm": self.slm} | ({"llm": self.llm} if self.llm is not None else {})


@dataclass(frozen=True)
class Losses:
    """Losses of eq. 4-6 on one batch, each a scalar tensor.

    Attributes:
        slm: supervised loss of the SLM, CE(z_g, y).
        llm: supervised loss of the LLM, CE(z_f, y).
        kl: the divergence in the SLM's loss, without λ: with `forward_kl`, τ² KL(p_f ‖ p_g); plus the distance of
            continuous outputs, if any.
        total: L_g + L_f.
    """

    slm: Tensor
    llm: Tensor
    kl: Tensor
    total: Tensor


def warmup_factor(round_index: int, rounds: int) -> float:
    """Return the factor of λ in a round: it grows linearly to 1 over the first `rounds` rounds, and stays there.

    >>> [warmup_factor(index, 4) for index in (1, 2, 4, 5)]
    [0.25, 0.5, 1.0, 1.0]
    >>> warmup_factor(1, 0)
    1.0
    """
    return min(1.0, round_index / rounds) if rounds else 1.0


def mutual_losses(
    slm_loss: Tensor,
    llm_loss: Tensor,
    rows: Rows,
    settings: DistillationConfig,
    factor: float = 1.0,
    trust: Mapping[str, Tensor] | None = None,
) -> Losses:
    """Return the losses of both models (eq. 4-6).

    One backward pass through the total is enough: the KL of each model detaches the other model, so that the gradient
    of L_g + L_f is that of L_g for the SLM and that of L_f for the LLM. No KL is computed for a model whose λ is 0.

    Args:
        slm_loss: supervised loss of the SLM, CE(z_g, y).
        llm_loss: supervised loss of the LLM, CE(z_f, y).
        rows: outputs of both models, matched row by row; unlabelled rows count in the KL too.
        settings: λ of both losses, τ, the divergence, and whether a model is taught only on those rows where the other
            model is less uncertain.
        factor: factor of both λ: that of the round's warm-up, times the batch's share of the step's rows.
        trust: the role of a model that is taught to [P], how much each row counts in what it is taught; None: 1.
    """
    weight, llm_weight = (factor * value for value in settings.weights)
    total, kl = slm_loss + llm_loss, torch.zeros(())
    slm_taught = llm_taught = None
    if settings.teach_where_better:
        slm_unsure, llm_unsure = uncertainty(rows.slm, rows.slm_targets), uncertainty(rows.llm, rows.llm_targets)
        slm_taught, llm_taught = llm_unsure < slm_unsure, slm_unsure < llm_unsure
    if trust is not None:
        slm_taught, llm_taught = (
            one.to(rows.slm.device) if taught is None else taught * one.to(rows.slm.device)
            for taught, one in ((slm_taught, trust["slm"]), (llm_taught, trust["llm"]))
        )
    if weight:
        kl = _taught("llm", rows, settings, slm_taught)
        total = total + weight * kl
    if llm_weight:
        total = total + llm_weight * _taught("slm", rows, settings, llm_taught)
    return Losses(slm_loss, llm_loss, kl, total)


def _taught(teacher: str, rows: Rows, settings: DistillationConfig, taught: Tensor | None) -> Tensor:
    """Return what the model of this role teaches the other one: the divergence, plus the distance of values, if any."""
    pair = (rows.llm, rows.slm) if teacher == "llm" else (rows.slm, rows.llm)
    loss = divergence(*pair, settings.temperature, settings.divergence, taught, rows.weights)
    if (values := rows.values) is None:
        return loss
    if teacher == "llm":
        return loss + distance(values.llm, values.slm, values.llm_weights, taught)
    return loss + distance(values.slm, values.llm, values.slm_weights, taught)


def distil(
    pair: ModelPair,
    public: Sequence[Any],
    settings: ServerConfig,
    seed: int,
    round_index: int = 1,
    trust: Trust | None = None,
) -> dict[str, float]:
    """Tune θ and ω on the public set D_a by mutual distillation (Algorithm 1, server side).

    Args:
        pair: both models, of which at least the SLM has trainable parameters; a model without any teaches only, without
            dropout. They are left in evaluation mode.
        public: D_a, labelled and unlabelled examples.
        settings: number of epochs, batches, AdamW of both models, and the settings of the distillation.
        seed: seed of the order of examples and of dropout.
        round_index: index of the round, 1 for the first one; λ may depend on it (`warmup_rounds`).
        trust: how much each model is taught on each example; None: all examples count alike.

    Returns:
        The means of `slm`, `llm` and `kl` of `Losses` over the steps of the last epoch.

    Raises:
        NonFiniteError: a loss or a weight became NaN or infinite.
    """
    generator = random.Random(seed)
    cast(Any, torch).manual_seed(seed)
    models = {role: model for role, model in pair.models().items() if any(p.requires_grad for p in model.parameters())}
    per_epoch = step_count(len(public), settings)
    stepper = Stepper(models, settings, settings.epochs * per_epoch, f"distillation, round {round_index}")
    collator, even = TrustingCollator(pair.modality, public, trust), settings.even_labels
    groups = (g for _ in range(settings.epochs) for g in step_batches(collator, public, settings, generator, even))
    factor = warmup_factor(round_index, settings.distillation.warmup_rounds)
    history: list[Losses] = []
    for role, model in pair.models().items():
        model.train(role in models)
    for group in track(groups, "distillation", total=settings.epochs * per_epoch):
        stepper.zero_grad()
        losses, rows = _accumulate(pair, group, settings.distillation, factor)
        history.append(losses)
        named = {"slm": losses.slm, "llm": losses.llm, "kl": losses.kl}
        stepper.step(named, rows, partial(check_loss, "distillation", **named, total=losses.total))
    for role, model in models.items():
        model.eval()
        check_finite_weights(f"distillation, {role.upper()}", model)
    give_back()
    last = history[-per_epoch:]
    means = {name: sum(getattr(e, name).item() for e in last) / max(len(last), 1) for name in ("slm", "llm", "kl")}
    check_finite("distillation", **means)
    return means


def _accumulate(
    pair: ModelPair, trusted: Sequence[TrustedBatch], settings: DistillationConfig, factor: float
) -> tuple[Losses, int]:
    """Accumulate the gradients of a step's batches. Each loss is a mean over all rows of the step that count in it.

    Returns:
        The losses of the step, detached, and the number of labelled rows of the SLM.
    """
    modality, sums, batches = pair.modality, list[Tensor](), [one.batch for one in trusted]
    labelled = {
        role: [modality.of(role).labelled(modality.part(batch, role)) for batch in batches] for role in pair.models()
    }
    shares = [_shares(counts) for counts in (*labelled.values(), [modality.rows(batch) for batch in batches])]
    for one, slm_share, llm_share, kl_share in zip(trusted, *shares, strict=True):
        slm_logits, llm_logits, slm_loss, llm_loss = _outputs(pair, one.batch)
        rows, scale = matched(modality, one.batch, slm_logits, llm_logits), factor * kl_share
        losses = mutual_losses(slm_loss * slm_share, llm_loss * llm_share, rows, settings, scale, one.trust)
        torch.autograd.backward(losses.total)
        parts = (losses.slm, losses.llm, losses.kl.to(losses.slm.device) * kl_share, losses.total)
        sums.append(torch.stack([part.detach() for part in parts]))
    return Losses(*torch.stack(sums).sum(0)), sum(labelled["slm"])


def _shares(counts: Sequence[int]) -> list[float]:
    """Return the share of each count in their sum; equal shares if all counts are zero.

    >>> _shares([1, 3]), _shares([0]), _shares([5])
    ([0.25, 0.75], [1.0], [1.0])
    """
    total = sum(counts)
    return [count / total if total else 1 / len(counts) for count in counts]


def _outputs(pair: ModelPair, batch: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the logits of the SLM and of the LLM and their supervised losses on one batch, on the SLM's device."""
    modality = pair.modality
    (slm_logits, slm_loss), (llm_logits, llm_loss) = (
        outputs(modality.of(role), model, modality.part(batch, role)) for role, model in pair.models().items()
    )
    device = slm_logits.device
    return slm_logits, llm_logits.to(device), slm_loss, llm_loss.to(device)
