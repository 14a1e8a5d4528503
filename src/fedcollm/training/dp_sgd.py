"""Fine-tuning that hides every single example: DP-SGD (Abadi et al., arXiv 1607.00133) on the adapter, with opacus.

Opacus gives every example's own gradient, clips it and sums. Which examples are in a batch, and the noise, come from
`SecureStream`: opacus' own noise is torch's Mersenne twister, whose state its output gives away, and its `secure_mode`
needs torchcsprng, which does not exist for current versions of torch.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedcollm.config import ClientConfig
from fedcollm.errors import UserError
from fedcollm.modalities.base import UNLABELLED, Modality
from fedcollm.models.fused.patch import unfused
from fedcollm.privacy.accounting import ExamplePrivacy, missing
from fedcollm.privacy.discrete_gaussian import discrete_gaussian
from fedcollm.privacy.keystream import SecureStream
from fedcollm.progress import track
from fedcollm.training.fine_tuning import check_finite_weights
from fedcollm.training.optimizers import adamw, scheduler

_GRID_BITS = 30  # the grid's step is the noise's standard deviation / 2³⁰


def fit_privately(
    modality: Modality,
    model: nn.Module,
    examples: Sequence[Any],
    settings: ClientConfig,
    privacy: ExamplePrivacy,
    where: str = "training",
) -> None:
    """Tune the trainable parameters on labelled examples, so that no single one shows; nothing else is given back.

    A step's gradient is the sum of the clipped gradients of a random batch, plus noise. It is not divided by the size
    of the batch, nor by the number of examples, which is the client's secret: AdamW does not mind the scale.

    Args:
        modality: an example's loss is the sum of the cross-entropy over its own supervised rows.
        model: its parameters with `requires_grad` are tuned, and all must belong to linear layers; left in evaluation
            mode.
        examples: the private part D_k.
        settings: AdamW and its schedule; `batch_size` is the number of examples in memory at once, without influence on
            the result.
        privacy: clipping, noise, sampling rate and number of steps.
        where: for progress and error messages.

    Raises:
        NonFiniteError: the adapter became NaN or infinite.
        UserError: opacus is not installed, or can't give this adapter's gradients.
    """
    if type(modality).loss is not Modality.loss:
        raise UserError(
            f"federation.privacy: {modality.name} has a loss of its own, and level example knows only that of rows of "
            "classes. Set federation.privacy.level: client."
        )
    stream = SecureStream()
    with unfused(model):  # opacus' hooks are on single layers
        hooks, optimizer = _private(model, settings, privacy, stream)
        schedule = scheduler(optimizer.original_optimizer, settings, privacy.steps)
        model.train()
        try:
            for _ in track(range(privacy.steps), where, total=privacy.steps):
                drawn: list[int] = np.flatnonzero(stream.uniform(len(examples)) < privacy.sampling_rate).tolist()
                near = sorted(drawn, key=lambda i: modality.size(examples[i]))
                chunks = [near[i : i + settings.batch_size] for i in range(0, len(near), settings.batch_size)] or [[]]
                for number, chunk in enumerate(chunks, start=1):
                    _backward(modality, model, [examples[i] for i in chunk])
                    optimizer.signal_skip_step(number < len(chunks))
                    with _exact_products():
                        optimizer.step()
                    optimizer.zero_grad()
                if schedule is not None:
                    schedule.step()
        finally:
            hooks.cleanup()
            for parameter in optimizer.params:
                del parameter.summed_grad
            model.eval()
    check_finite_weights(where, model)


def _private(
    model: nn.Module, settings: ClientConfig, privacy: ExamplePrivacy, stream: SecureStream
) -> tuple[Any, Any]:
    """Opacus' hooks on the model, to be cleaned up, and its optimizer, to which our noise is added.

    Raises:
        UserError: opacus is not installed, or a trainable parameter is not a linear layer's.
    """
    try:
        from opacus.grad_sample import GradSampleHooks
        from opacus.optimizers import DPOptimizer
    except ImportError as error:
        raise missing("opacus") from error
    for name, module in model.named_modules():
        own = any(p.requires_grad for p in module.parameters(recurse=False))
        if own and not isinstance(module, nn.Linear):
            raise UserError(
                f"federation.privacy: gradients of single examples can be had for linear layers only, and {name} is a "
                f"{type(module).__name__}. Set slm.adapter.kind: lora without options."
            )
    hooks = GradSampleHooks(model, loss_reduction="sum")
    optimizer = DPOptimizer(
        adamw(model, settings),
        noise_multiplier=0.0,  # opacus clips and sums; the noise is added by the hook, which runs at every step
        max_grad_norm=privacy.clip,
        expected_batch_size=None,
        loss_reduction="sum",
    )

    def add_noise(optimizer: DPOptimizer) -> None:
        for parameter in optimizer.params:
            _add_noise(parameter, privacy.noise_multiplier * privacy.clip, stream)

    optimizer.attach_step_hook(add_noise)
    return hooks, optimizer


def _backward(modality: Modality, model: nn.Module, examples: Sequence[Any]) -> None:
    """Leave each example's gradient in the parameters' `grad_sample`, [examples, *shape]."""
    if not examples:  # it happens by chance, and the step must not show that it did
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)  # pyright: ignore
        return
    batch = modality.collate(examples)
    logits = modality.logits(model, batch)
    loss = functional.cross_entropy(
        logits, modality.targets(batch).to(logits.device), ignore_index=UNLABELLED, reduction="sum"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")  # the first layer's input is data
        loss.backward()


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """Let opacus sum clipped gradients in float32, also where a run allows bfloat16 products.

    Those are wrong by up to 0.4 %, by which an example could overstep the clip.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _add_noise(parameter: nn.Parameter, deviation: float, stream: SecureStream) -> None:
    """Round the gradient to a fine grid and add a discrete Gaussian on the same grid.

    So its lowest bits don't give the gradient away, as those of floating-point noise do (Mironov 2012). Rounding adds
    at most a step a parameter to an example's influence: a millionth of the clip for a million parameters.
    """
    step = deviation * 2.0**-_GRID_BITS
    noise = torch.from_numpy(discrete_gaussian(4.0**_GRID_BITS, parameter.numel(), stream)).view(parameter.shape)
    gradient: Tensor = parameter.grad  # pyright: ignore[reportAssignmentType]
    total = (gradient.double() / step).round() + noise.to(gradient.device)
    parameter.grad = (total * step).to(gradient.dtype)
