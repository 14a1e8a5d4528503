"""Fine-tuning and scoring: one loop for both roles and every modality."""

import math
import operator
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedcollm.errors import NonFiniteError
from fedcollm.messages import Score
from fedcollm.modalities.base import UNLABELLED, Collator, Task
from fedcollm.progress import track

#: Batches are cut from windows of this many batches sorted by size: little padding, still random.
_WINDOW = 8


def batch_count(examples: Sequence[Any], batch_size: int) -> int:
    """Number of batches of one pass."""
    return math.ceil(len(examples) / batch_size)


def minibatches(task: Collator, examples: Sequence[Any], batch_size: int, generator: random.Random) -> Iterator[Any]:
    """One shuffled pass over the examples as collated batches of examples of like size.

    Args:
        task: gives each example's size and collates.
        examples: any number of examples.
        batch_size: examples a batch; the batch of the remainder is smaller.
        generator: the only source of randomness.
    """
    order = list(range(len(examples)))
    generator.shuffle(order)
    window = batch_size * _WINDOW
    batches = []
    for start in range(0, len(order), window):
        near = sorted(order[start : start + window], key=lambda i: task.size(examples[i]))
        batches += [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
    generator.shuffle(batches)
    for batch in batches:
        yield task.collate([examples[i] for i in batch])


def adamw(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """A fresh AdamW over the trainable parameters, β = (0.9, 0.95) as in FedMKT (arXiv 2406.02224).

    A round has few steps, so the usual β₂ = 0.999 would still be averaging over the first ones at its end.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over labelled rows; zero, with a zero gradient, if there are none.

    Args:
        logits: [P, V].
        targets: [P] int64; rows with `UNLABELLED` don't count.
    """
    labelled = (targets != UNLABELLED).sum().clamp(min=1)
    return functional.cross_entropy(logits, targets, ignore_index=UNLABELLED, reduction="sum") / labelled


def check_finite(where: str, **losses: float) -> None:
    """Refuse to go on with a loss that is NaN or infinite.

    Raises:
        NonFiniteError: names the place, the loss and what to do.
    """
    for name, value in losses.items():
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{where}: the {name} loss became {value}; the last good state is kept. "
                "Lower the learning rate, or look for broken examples."
            )


def check_finite_weights(where: str, model: nn.Module) -> None:
    """Refuse trained weights that are NaN or infinite, as a last step that overflowed leaves them.

    Raises:
        NonFiniteError: names the place.
    """
    if not all(p.isfinite().all() for p in model.parameters() if p.requires_grad):
        raise NonFiniteError(
            f"{where}: the adapter is no longer finite; the last good state is kept. Lower the learning rate."
        )


def pull_back(anchors: Iterable[tuple[nn.Parameter, Tensor]], proximal: float) -> None:
    """Add the gradient of μ/2 ‖θ − θ₀‖², which is μ (θ − θ₀), to pairs of θ and θ₀."""
    for parameter, anchor in anchors:
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - anchor, alpha=proximal)


def clip(model: nn.Module, max_grad_norm: float | None) -> None:
    """Scale the gradient of the trainable parameters, as one vector, down to an L2 norm where it is longer.

    From Pascanu et al., arXiv 1211.5063, algorithm 1. None: leave it as it is.
    """
    if max_grad_norm is not None:
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], max_grad_norm)


def fit(
    task: Task,
    model: nn.Module,
    examples: Sequence[Any],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    proximal: float = 0.0,
    max_grad_norm: float | None = None,
    where: str = "training",
) -> float:
    """Tune the trainable parameters on labelled examples (Algorithm 1, client side).

    Args:
        task: the modality.
        model: its parameters with `requires_grad` are tuned; left in evaluation mode.
        examples: the private part D_k.
        epochs: passes over the examples.
        batch_size: examples a step.
        learning_rate: of AdamW, constant.
        seed: decides order and dropout, together with nothing else.
        proximal: μ of FedProx (Li et al., arXiv 1812.06127, eq. 2): μ/2 ‖θ − θ₀‖² is added to the loss, θ₀ being the
            parameters at the start; what is returned is without it.
        max_grad_norm: longest gradient of a step, the proximal term's included (`clip`).
        where: for progress and error messages.

    Returns:
        Mean loss over the labelled rows of the last epoch.

    Raises:
        NonFiniteError: the loss became NaN or infinite.
    """
    generator = random.Random(seed)
    torch.manual_seed(seed)
    optimizer = adamw(model, learning_rate)
    count = batch_count(examples, batch_size)
    batches = (batch for _ in range(epochs) for batch in minibatches(task, examples, batch_size, generator))
    losses, rows = [], []
    anchors = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad] if proximal else []
    model.train()
    for batch in track(batches, where, total=epochs * count):
        logits, targets = task.logits(model, batch), task.targets(batch)
        loss = cross_entropy(logits, targets.to(logits.device))
        optimizer.zero_grad()
        loss.backward()
        pull_back(anchors, proximal)
        clip(model, max_grad_norm)
        losses.append(loss.item())
        rows.append(int((targets != UNLABELLED).sum()))
        check_finite(where, training=losses[-1])
        optimizer.step()
    model.eval()
    check_finite_weights(where, model)
    return sum(map(operator.mul, losses[-count:], rows[-count:])) / max(sum(rows[-count:]), 1)


def evaluate(task: Task, model: nn.Module, examples: Sequence[Any], batch_size: int, where: str = "scoring") -> Score:
    """Score a model on examples, in batches of like size.

    Returns:
        The exact sum of the batches' scores.
    """
    batches, total = like_sized(task, examples, batch_size), Score({}, 0)
    model.eval()
    with torch.inference_mode():
        for batch in track(batches, where, total=len(batches)):
            total += task.score(model, [examples[i] for i in batch])
    return total


def like_sized(task: Collator, examples: Sequence[Any], batch_size: int) -> list[list[int]]:
    """Positions of all examples, by size, in batches."""
    order = sorted(range(len(examples)), key=lambda i: task.size(examples[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
