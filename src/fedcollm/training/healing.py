"""Healing: a cut model learns its original's next-token distributions again, on public text.

Distillation after pruning, as in Minitron (Muralidharan et al., arXiv 2407.14679, section 3): the loss is the mean over
tokens of KL(whole ‖ cut), and all weights learn, except the embedding and the head, which both models share.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fedcollm.config import HealingConfig
from fedcollm.modalities.base import Modality
from fedcollm.progress import track
from fedcollm.seeding import derive_seed
from fedcollm.storage import replacing
from fedcollm.training.batches import minibatches, step_batches, step_count
from fedcollm.training.divergences import divergence
from fedcollm.training.fine_tuning import check_finite_weights, check_loss
from fedcollm.training.optimizers import Stepper

_WHERE = "healing"
_MOST_NATS = 700.0  # a larger cross-entropy counts as this one, since its exponential would overflow


@dataclass(frozen=True)
class Fit:
    """How well a model predicts a held-out text.

    Attributes:
        perplexity: exp of the mean cross-entropy per token.
        kl: mean KL(whole ‖ model) per token in nats; None for the whole model itself.
    """

    perplexity: float
    kl: float | None = None


def measure(modality: Modality, student: nn.Module, teacher: nn.Module | None, batches: Sequence[Any]) -> Fit:
    """Return how well a model predicts a text, and how far its predictions are from those of the whole model."""
    student.eval()
    nats = kl = rows = 0.0
    with torch.inference_mode():
        for batch in batches:
            logits, count = modality.logits(student, batch), modality.labelled(batch)
            nats += float(modality.loss(logits, batch)) * count
            kl += float(divergence(modality.logits(teacher, batch), logits)) * count if teacher is not None else 0.0
            rows += count
    return Fit(math.exp(min(nats / rows, _MOST_NATS)), kl / rows if teacher is not None else None)


@dataclass(frozen=True)
class Checkpoint:
    """A file from which an interrupted healing continues, bit for bit.

    Attributes:
        file: where it is; its directory exists.
        every: number of steps between two writes.
    """

    file: Path
    every: int = 20

    def save(self, student: nn.Module, stepper: Stepper) -> None:
        """Write the trained weights and the state of the optimizer, atomically."""
        weights = {f"weights/{name}": tensor.detach() for name, tensor in _trained(student).items()}
        with replacing(self.file) as temporary:
            cast(Any, safetensors.torch).save_file(weights | stepper.state(), temporary)

    def load(self, student: nn.Module, stepper: Stepper) -> int:
        """Read them again, and return the number of steps that are done. A file that is damaged counts as absent."""
        trained = {f"weights/{name}": parameter for name, parameter in _trained(student).items()}
        try:
            tensors: dict[str, Tensor] = cast(Any, safetensors.torch).load_file(self.file)
        except (OSError, ValueError, SafetensorError):
            return 0
        fits = all(name in tensors and tensors[name].shape == value.shape for name, value in trained.items())
        if not fits or not stepper.fits(tensors):
            return 0
        for name, parameter in trained.items():
            parameter.data.copy_(tensors.pop(name))
        return stepper.restore(tensors)


def heal(
    modality: Modality,
    student: nn.Module,
    teacher: nn.Module,
    texts: Sequence[Any],
    settings: HealingConfig,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train a cut model on public text.

    Args:
        modality: makes batches and outputs of the texts, one row per token.
        student: the cut model in float32, changed in place and left in evaluation mode.
        teacher: the whole model.
        texts: the pieces of text, of which each is seen once per epoch.
        settings: batches, AdamW, schedule, objective and seed.
        checkpoint: where to save what an interrupted healing continues from.

    Raises:
        NonFiniteError: a loss or a weight became NaN or infinite.
    """
    generator = random.Random(settings.seed)
    steps = settings.epochs * step_count(len(texts), settings)
    _freeze_embeddings(student)
    stepper = Stepper({"model": student}, settings, steps, _WHERE)
    done = checkpoint.load(student, stepper) if checkpoint else 0
    groups = (group for _ in range(settings.epochs) for group in step_batches(modality, texts, settings, generator))
    student.train()
    for number, group in enumerate(track(groups, _WHERE, total=steps), start=1):
        if number <= done:
            continue
        cast(Any, torch).manual_seed(derive_seed(settings.seed, _WHERE, number))  # for models with dropout
        stepper.zero_grad()
        loss, rows = _accumulate(modality, student, teacher, group, settings.objective)
        stepper.step({_WHERE: loss}, rows, partial(check_loss, _WHERE, healing=loss))
        if checkpoint and number % checkpoint.every == 0:
            checkpoint.save(student, stepper)
    student.eval()
    check_finite_weights(_WHERE, student)


def text_batches(modality: Modality, texts: Sequence[Any], batch_size: int) -> list[Any]:
    """Return batches of like-sized texts, for measurements."""
    return list(minibatches(modality, texts, batch_size, random.Random(0)))


def _distillation(modality: Modality, student: nn.Module, teacher: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        target = modality.logits(teacher, batch)
    return divergence(target, modality.logits(student, batch))


def _next_token(modality: Modality, student: nn.Module, teacher: nn.Module, batch: Any) -> Tensor:
    return modality.loss(modality.logits(student, batch), batch)


#: `slm.heal.objective` to the loss of a batch, a scalar mean over its rows.
OBJECTIVES: Mapping[str, Callable[[Modality, nn.Module, nn.Module, Any], Tensor]] = {
    "distillation": _distillation,
    "next_token": _next_token,
}


def _accumulate(
    modality: Modality, student: nn.Module, teacher: nn.Module, batches: Sequence[Any], objective: str
) -> tuple[Tensor, int]:
    """Accumulate the gradient of the mean loss over all rows of a step's batches; return the loss and the rows."""
    rows, parts = [modality.labelled(batch) for batch in batches], list[Tensor]()
    for batch, count in zip(batches, rows, strict=True):
        with _mixed_precision(student, teacher):
            loss = OBJECTIVES[objective](modality, student, teacher, batch) * (count / max(sum(rows), 1))
        torch.autograd.backward(loss)
        parts.append(loss.detach())
    return torch.stack(parts).sum(), sum(rows)


def _mixed_precision(student: nn.Module, teacher: nn.Module) -> Any:
    """Return a context in which the student multiplies in the teacher's dtype, if that is narrower than its own."""
    own, others = next(student.parameters()), next(teacher.parameters()).dtype
    return torch.autocast(own.device.type, dtype=others, enabled=others != own.dtype)


def _freeze_embeddings(model: Any) -> None:
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is not None:
            module.requires_grad_(False)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
