"""Fine-tuning and scoring: one loop for clients and server, and for every modality."""

import math
import random
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedcollm.config import ClientConfig
from fedcollm.data.augmentation.batches import epoch_batches
from fedcollm.errors import NonFiniteError
from fedcollm.memory import give_back
from fedcollm.messages import Score, all_finite
from fedcollm.modalities.base import Modality, outputs
from fedcollm.progress import track
from fedcollm.training.batches import like_sized, step_batches, step_count
from fedcollm.training.losses import loss_of_rows
from fedcollm.training.optimizers import Stepper


def check_finite(where: str, **losses: float) -> None:
    """Check that no loss is NaN or infinite.

    Args:
        where: name of the loop, for the message.
        losses: the losses by name.

    Raises:
        NonFiniteError: a loss is not finite; the message names it and says what to do.
    """
    for name, value in losses.items():
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{where}: the {name} loss became {value}; the last good state is kept. "
                "Lower the learning rate, or look for broken examples."
            )


def check_loss(where: str, **losses: Tensor) -> None:
    """Check that no loss on the CPU is NaN or infinite; reading a loss on a GPU would have to wait for the device.

    Args:
        where: name of the loop, for the message.
        losses: the losses by name, each a scalar.

    Raises:
        NonFiniteError: a loss is not finite, as in `check_finite`.
    """
    check_finite(where, **{name: loss.item() for name, loss in losses.items() if loss.device.type == "cpu"})


def check_finite_weights(where: str, model: nn.Module) -> None:
    """Check that no trained weight is NaN or infinite, which it is if the last step overflowed.

    Args:
        where: name of the loop, for the message.
        model: its trainable parameters are checked.

    Raises:
        NonFiniteError: a weight is not finite.
    """
    if not all_finite(p for p in model.parameters() if p.requires_grad):
        raise NonFiniteError(
            f"{where}: the adapter is no longer finite; the last good state is kept. Lower the learning rate."
        )


def pull_back(anchors: Iterable[tuple[nn.Parameter, Tensor]], proximal: float) -> None:
    """Add the gradient of FedProx's μ/2 ‖θ − θ₀‖², which is μ (θ − θ₀), to the gradient of every parameter.

    Args:
        anchors: pairs of a parameter θ and its value θ₀ at the start of the round.
        proximal: μ.
    """
    for parameter, anchor in anchors:
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - anchor, alpha=proximal)


def fit(
    modality: Modality,
    model: nn.Module,
    examples: Sequence[Any],
    settings: ClientConfig,
    seed: int,
    where: str = "training",
) -> float:
    """Fine-tune the trainable parameters on labelled examples (Algorithm 1, client side).

    With `proximal` (μ of FedProx, Li et al., arXiv 1812.06127, eq. 2), the gradient includes that of μ/2 ‖θ − θ₀‖²,
    where θ₀ are the parameters at the start. The returned loss does not include this term.

    Args:
        modality: makes batches, outputs and losses.
        model: its trainable parameters are tuned; the model is left in evaluation mode.
        examples: the private part D_k.
        settings: number of epochs, batches, the loss, AdamW and its schedule, `proximal`, and augmentations, with their
            kinds named.
        seed: seed of the order of examples, of dropout and of augmentations.
        where: name of the loop, for progress, metrics and error messages.

    Returns:
        The mean loss over the labelled rows of the last epoch.

    Raises:
        NonFiniteError: the loss or a weight became NaN or infinite.
    """
    generator = random.Random(seed)
    cast(Any, torch).manual_seed(seed)
    per_epoch = step_count(len(examples), settings)
    stepper = Stepper({"model": model}, settings, settings.epochs * per_epoch, where)
    anchors = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad] if settings.proximal else []
    history: list[tuple[Tensor, int]] = []
    groups = (
        group
        for epoch in range(settings.epochs)
        for group in step_batches(
            epoch_batches(modality, settings.augmentation, seed, epoch), examples, settings, generator
        )
    )
    model.train()
    for group in track(groups, where, total=settings.epochs * per_epoch):
        stepper.zero_grad()
        loss, rows = _accumulate(modality, model, group, settings)
        pull_back(anchors, settings.proximal)
        history.append((loss, rows))
        stepper.step({"training": loss}, rows, partial(check_loss, where, training=loss))
    model.eval()
    give_back()
    check_finite_weights(where, model)
    last = [(loss.item(), count) for loss, count in history[-per_epoch:]]
    check_finite(where, training=sum(loss for loss, _ in last))
    return sum(loss * count for loss, count in last) / max(sum(count for _, count in last), 1)


def _accumulate(
    modality: Modality, model: nn.Module, batches: Sequence[Any], settings: ClientConfig
) -> tuple[Tensor, int]:
    """Accumulate the gradient of the mean loss over all labelled rows of a step's batches.

    Returns:
        That loss, a scalar on the model's device, and the number of labelled rows.
    """
    rows = [modality.labelled(batch) for batch in batches]
    parts: list[Tensor] = []
    for batch, count in zip(batches, rows, strict=True):
        share = count / sum(rows) if sum(rows) else 1 / len(rows)
        logits, loss = outputs(modality, model, batch)
        if not settings.has_plain_loss:
            loss = loss_of_rows(logits, modality.targets(batch).to(logits.device), settings)
        loss = loss * share
        torch.autograd.backward(loss)
        parts.append(loss.detach())
    return torch.stack(parts).sum(), sum(rows)


def predict(
    modality: Modality, model: nn.Module, examples: Sequence[Any], batch_size: int, where: str = "predicting"
) -> list[Tensor]:
    """Return [C_i] probabilities of each example's labels or choices, in the order of the examples.

    Args:
        modality: gives the probabilities of a batch.
        model: the model; it is left in evaluation mode.
        examples: any number of examples.
        batch_size: number of examples per batch; the examples of a batch are of similar size.
        where: name of the loop, for progress.
    """
    batches, found = like_sized(modality, examples, batch_size), dict[int, Tensor]()
    model.eval()
    with torch.inference_mode():
        for batch in track(batches, where, total=len(batches)):
            found |= zip(batch, modality.probabilities(model, [examples[i] for i in batch]), strict=True)
    return [found[i] for i in range(len(examples))]


def evaluate(
    modality: Modality, model: nn.Module, examples: Sequence[Any], batch_size: int, where: str = "scoring"
) -> Score:
    """Score a model on examples.

    Args:
        modality: scores batches.
        model: the model; it is left in evaluation mode.
        examples: any number of examples.
        batch_size: number of examples per batch; the examples of a batch are of similar size. A modality that
            `scores_together` makes batches of its own.
        where: name of the loop, for progress.

    Returns:
        The exact sum of the scores of all batches.
    """
    whole = [list(range(len(examples)))] if examples else []
    batches = whole if modality.scores_together else like_sized(modality, examples, batch_size)
    total = Score({}, 0)
    model.eval()
    with torch.inference_mode():
        for batch in track(batches, where, total=len(batches)):
            total += modality.score(model, [examples[i] for i in batch])
    return total
