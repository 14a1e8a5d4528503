"""AdamW with its learning-rate schedule, gradient accumulation and clipping: one optimizer step of every loop."""

import math
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fedcollm import metrics
from fedcollm.config import TrainingConfig


def adamw(model: nn.Module, settings: TrainingConfig) -> torch.optim.Optimizer:
    """Return a fresh AdamW over the trainable parameters.

    β = (0.9, 0.95) by default, as in FedMKT (arXiv 2406.02224): a round has few steps, so the usual β₂ = 0.999 would
    still be averaging over the first ones at its end.
    """
    return torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def scheduler(
    optimizer: torch.optim.Optimizer, settings: TrainingConfig, steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """Return the learning-rate schedule of a round, by transformers' `get_scheduler`; None if the rate never changes.

    Args:
        optimizer: whose learning rate is set.
        settings: name of the schedule, and share of warm-up steps.
        steps: optimizer steps of the round.
    """
    warmup = math.ceil(settings.warmup_ratio * steps)
    if settings.schedule == "constant" and not warmup:
        return None
    from transformers.optimization import get_scheduler

    name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
    return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)


def clip(model: nn.Module, max_grad_norm: float | None) -> Tensor | None:
    """Scale the gradient of the trainable parameters, as one vector, down to an L2 norm if it is longer.

    From Pascanu et al., arXiv 1211.5063, algorithm 1. With None it stays as it is.

    Returns:
        The norm before clipping, a scalar on the model's device; None where neither clipping nor a listener needs it.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if max_grad_norm is not None:
        return nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    if metrics.is_heard():
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return None


class Stepper:
    """The optimizer steps of one loop over a round's batches, for one model or for two that step together.

    Args:
        models: name to model; each has its own AdamW, schedule and clipping.
        settings: of the loop.
        steps: optimizer steps that the loop will take.
        where: for metrics.
    """

    def __init__(self, models: Mapping[str, nn.Module], settings: TrainingConfig, steps: int, where: str):
        self._models, self._settings, self._steps, self._where = models, settings, steps, where
        self._optimizers = {name: adamw(model, settings) for name, model in models.items()}
        self._schedulers = [scheduler(optimizer, settings, steps) for optimizer in self._optimizers.values()]
        self._done, self._last = 0, time.perf_counter()

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        for optimizer in self._optimizers.values():
            optimizer.zero_grad()

    def step(self, losses: Mapping[str, Tensor], rows: int, check: Callable[[], None] = lambda: None) -> None:
        """Clip the gradients, call `check`, step every optimizer and its schedule, and tell who listens.

        Args:
            losses: of the step, for metrics.
            rows: supervised rows of the step, for metrics.
            check: may raise before any parameter changes.
        """
        norms = {name: clip(model, self._settings.max_grad_norm) for name, model in self._models.items()}
        check()
        rate = next(iter(self._optimizers.values())).param_groups[0]["lr"]
        for optimizer in self._optimizers.values():
            optimizer.step()
        for schedule in self._schedulers:
            if schedule is not None:
                schedule.step()
        self._done += 1
        if metrics.is_heard():
            now = time.perf_counter()
            known = {name: norm for name, norm in norms.items() if norm is not None}
            metrics.emit(
                metrics.Step(self._where, self._done, self._steps, losses, float(rate), rows, now - self._last, known)
            )
            self._last = now
