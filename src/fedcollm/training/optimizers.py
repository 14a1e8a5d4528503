"""Optimizer steps: AdamW with a learning-rate schedule and gradient clipping, shared by every training loop."""

import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedcollm import metrics
from fedcollm.config import TrainingConfig


def adamw(model: nn.Module, settings: TrainingConfig) -> torch.optim.Optimizer:
    """Return a new AdamW over the trainable parameters.

    By default β = (0.9, 0.95), as in FedMKT (arXiv 2406.02224). A round has few steps: with the usual β₂ = 0.999, the
    second moment would still be dominated by the first steps at the end of the round.
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
    """Return the learning-rate schedule of a round, made by transformers' `get_scheduler`.

    Args:
        optimizer: the optimizer whose learning rate changes.
        settings: gives the name of the schedule and the share of warm-up steps.
        steps: number of optimizer steps in the round.

    Returns:
        The schedule, or None if the learning rate never changes.
    """
    warmup = int(settings.warmup_ratio * steps)  # rounded down: a round of few steps must not spend them on warm-up
    if settings.schedule == "constant" and not warmup:
        return None
    from transformers import optimization

    name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
    return cast(Any, optimization).get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)


def clip(model: nn.Module, max_grad_norm: float | None) -> Tensor | None:
    """Scale the gradient of all trainable parameters, taken as one vector, down to a maximum L2 norm.

    Source: Pascanu et al., arXiv 1211.5063, algorithm 1.

    Args:
        model: the model, after the backward pass.
        max_grad_norm: the maximum; None leaves the gradient as it is.

    Returns:
        The norm before clipping, a scalar on the model's device; None if neither clipping nor a listener needs it.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if max_grad_norm is not None:
        return nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    if metrics.is_heard():
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return None


#: What AdamW keeps of each parameter.
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Stepper:
    """The optimizer steps of one training loop, for one model or for two models that step together.

    Args:
        models: each model by its name; every model has its own AdamW, schedule and clipping.
        settings: the settings of the loop.
        steps: number of optimizer steps that the loop will take.
        where: name of the loop, for metrics.
    """

    def __init__(self, models: Mapping[str, nn.Module], settings: TrainingConfig, steps: int, where: str):
        self._models, self._settings, self._steps, self._where = models, settings, steps, where
        self._optimizers = {name: adamw(model, settings) for name, model in models.items()}
        self._schedulers = [scheduler(optimizer, settings, steps) for optimizer in self._optimizers.values()]
        self._done, self._last = 0, time.perf_counter()

    def zero_grad(self) -> None:
        """Clear the gradients of the previous step."""
        for optimizer in self._optimizers.values():
            optimizer.zero_grad()

    def step(self, losses: Mapping[str, Tensor], rows: int, check: Callable[[], None] = lambda: None) -> None:
        """Clip the gradients, step every optimizer and its schedule, and report the step to listeners.

        Args:
            losses: the losses of the step by name, for metrics.
            rows: number of supervised rows in the step, for metrics.
            check: called after clipping and before any parameter changes; it may raise an error.
        """
        norms = {name: clip(model, self._settings.max_grad_norm) for name, model in self._models.items()}
        check()
        rate = float(next(iter(self._optimizers.values())).param_groups[0]["lr"])
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
                metrics.Step(self._where, self._done, self._steps, losses, rate, rows, now - self._last, known)
            )
            self._last = now

    def state(self) -> dict[str, Tensor]:
        """Return all that later steps depend on besides the parameters, as tensors by name."""
        tensors = {"done": torch.tensor(self._done)}
        for name, optimizer in self._optimizers.items():
            rate = float(optimizer.param_groups[0]["lr"])
            tensors[f"{name}/rate"] = torch.tensor(rate, dtype=torch.float64)
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}/{index}/{key}": value for key, value in values.items()}
        return tensors

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Return whether tensors, perhaps among others, are what `state` returns after some steps of these models."""
        names = {"done"} | {f"{name}/rate" for name in self._optimizers}
        stepped = {name.rpartition("/")[0] for name in tensors if name.count("/") == 2}  # those that had a gradient
        own = {one for one in stepped if one.split("/")[0] in self._optimizers}
        return bool(own) and names | {f"{one}/{key}" for one in own for key in _MOMENTS} <= tensors.keys()

    def restore(self, tensors: Mapping[str, Tensor]) -> int:
        """Continue from what `state` returned. Return the number of steps that are done."""
        self._done = int(tensors["done"])
        for (name, optimizer), schedule in zip(self._optimizers.items(), self._schedulers, strict=True):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                model, *rest = key.split("/")
                if model == name and len(rest) == 2:
                    state.setdefault(int(rest[0]), {})[rest[1]] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
            optimizer.param_groups[0]["lr"] = float(tensors[f"{name}/rate"])
            if schedule is not None:
                schedule.last_epoch, schedule._step_count = self._done, self._done + 1  # pyright: ignore
        return self._done
