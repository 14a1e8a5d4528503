"""Fine-tuning and scoring: one loop for both roles and every modality."""

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedcollm.config import ClientConfig, TrainingConfig
from fedcollm.errors import NonFiniteError
from fedcollm.messages import Score
from fedcollm.modalities.base import Modality
from fedcollm.progress import track
from fedcollm.training.optimizers import Stepper

#: Batches are cut from windows of this many batches sorted by size: little padding, still random.
_WINDOW = 8


class Collator(Protocol):
    """How examples become batches of similar size; every modality is one."""

    def size(self, example: Any) -> int:
        """Return the cost of one example."""
        ...

    def collate(self, examples: Sequence[Any]) -> Any:
        """Return one batch."""
        ...


def batch_count(examples: Sequence[Any], batch_size: int) -> int:
    """Return the number of batches of one pass."""
    return math.ceil(len(examples) / batch_size)


def minibatches(
    modality: Collator, examples: Sequence[Any], batch_size: int, generator: random.Random
) -> Iterator[Any]:
    """Yield one shuffled pass over the examples as collated batches of examples of similar size.

    Args:
        modality: gives each example's size and collates.
        examples: any number of examples.
        batch_size: examples per batch; the batch of the remainder is smaller.
        generator: the only source of randomness.
    """
    order = list(range(len(examples)))
    generator.shuffle(order)
    window = batch_size * _WINDOW
    batches = []
    for start in range(0, len(order), window):
        near = sorted(order[start : start + window], key=lambda i: modality.size(examples[i]))
        batches += [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
    generator.shuffle(batches)
    for batch in batches:
        yield modality.collate([examples[i] for i in batch])


def step_count(examples: Sequence[Any], settings: TrainingConfig) -> int:
    """Return the number of optimizer steps of one pass."""
    return math.ceil(batch_count(examples, settings.batch_size) / settings.gradient_accumulation)


def step_batches(
    modality: Collator, examples: Sequence[Any], settings: TrainingConfig, generator: random.Random
) -> Iterator[list[Any]]:
    """Yield the batches of each optimizer step of one shuffled pass: `gradient_accumulation` of them, or the rest."""
    batches = minibatches(modality, examples, settings.batch_size, generator)
    while group := list(itertools.islice(batches, settings.gradient_accumulation)):
        yield group


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


def check_loss(where: str, **losses: Tensor) -> None:
    """Refuse a loss that is NaN or infinite, where looking at it costs nothing: not on a GPU, which would have to wait.

    Raises:
        NonFiniteError: as `check_finite`.
    """
    check_finite(where, **{name: loss.item() for name, loss in losses.items() if loss.device.type == "cpu"})


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


def fit(
    modality: Modality,
    model: nn.Module,
    examples: Sequence[Any],
    settings: ClientConfig,
    seed: int,
    where: str = "training",
) -> float:
    """Tune the trainable parameters on labelled examples (Algorithm 1, client side).

    Args:
        modality: makes batches, outputs and losses.
        model: its parameters with `requires_grad` are tuned; left in evaluation mode.
        examples: the private part D_k.
        settings: passes, batches, AdamW and its schedule. With `proximal`, FedProx's μ (Li et al., arXiv 1812.06127,
            eq. 2), μ/2 ‖θ − θ₀‖² is added to the loss, θ₀ being the parameters at the start; the loss that is returned
            is without it.
        seed: decides order and dropout, together with nothing else.
        where: for progress, metrics and error messages.

    Returns:
        Mean loss over the labelled rows of the last epoch.

    Raises:
        NonFiniteError: the loss became NaN or infinite.
    """
    generator = random.Random(seed)
    torch.manual_seed(seed)
    per_epoch = step_count(examples, settings)
    stepper = Stepper({"model": model}, settings, settings.epochs * per_epoch, where)
    anchors = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad] if settings.proximal else []
    history: list[tuple[Tensor, int]] = []
    groups = (group for _ in range(settings.epochs) for group in step_batches(modality, examples, settings, generator))
    model.train()
    for group in track(groups, where, total=settings.epochs * per_epoch):
        stepper.zero_grad()
        loss, rows = _accumulate(modality, model, group)
        pull_back(anchors, settings.proximal)
        history.append((loss, rows))
        stepper.step({"training": loss}, rows, partial(check_loss, where, training=loss))
    model.eval()
    check_finite_weights(where, model)
    last = [(loss.item(), count) for loss, count in history[-per_epoch:]]
    check_finite(where, training=sum(loss for loss, _ in last))
    return sum(loss * count for loss, count in last) / max(sum(count for _, count in last), 1)


def _accumulate(modality: Modality, model: nn.Module, batches: Sequence[Any]) -> tuple[Tensor, int]:
    """Add up the gradients of a step's batches: those of the mean loss over all their labelled rows.

    Returns:
        That loss, a scalar on the model's device, and the number of rows.
    """
    rows = [modality.labelled(batch) for batch in batches]
    parts = []
    for batch, count in zip(batches, rows, strict=True):
        share = count / sum(rows) if sum(rows) else 1 / len(rows)
        loss = modality.loss(modality.logits(model, batch), batch) * share
        loss.backward()
        parts.append(loss.detach())
    return torch.stack(parts).sum(), sum(rows)


def evaluate(
    modality: Modality, model: nn.Module, examples: Sequence[Any], batch_size: int, where: str = "scoring"
) -> Score:
    """Score a model on examples, in batches of similar size.

    Returns:
        The exact sum of the batches' scores.
    """
    batches, total = like_sized(modality, examples, batch_size), Score({}, 0)
    model.eval()
    with torch.inference_mode():
        for batch in track(batches, where, total=len(batches)):
            total += modality.score(model, [examples[i] for i in batch])
    return total


def like_sized(modality: Collator, examples: Sequence[Any], batch_size: int) -> list[list[int]]:
    """Return the positions of all examples, sorted by size, in batches."""
    order = sorted(range(len(examples)), key=lambda i: modality.size(examples[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
