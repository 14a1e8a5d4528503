"""Fine-tuning that hides every single example: DP-SGD (Abadi et al., arXiv 1607.00133) on the adapter, with opacus.

Opacus computes, clips and sums the per-example gradients. Which examples are in a batch, and the noise, come from
`SecureStream`. The noise of opacus itself comes from torch's Mersenne twister, whose output reveals its state, and its
`secure_mode` needs torchcsprng, which does not exist for current versions of torch.
"""

import contextlib
import warnings
from collections.abc import Generator, Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn
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
from fedcollm.training.mixing import check_apart
from fedcollm.training.optimizers import adamw, scheduler

_LARGEST_SQUARE = 1e36  # of a per-example gradient's L2 norm; opacus sums the squares in float32
_GRID_BITS = 30  # the noise lies on a grid whose step is its standard deviation / 2³⁰


def fit_privately(
    modality: Modality,
    model: nn.Module,
    examples: Sequence[Any],
    settings: ClientConfig,
    privacy: ExamplePrivacy,
    where: str = "training",
) -> None:
    """Fine-tune the trainable parameters on labelled examples, so that no single example shows. Return no loss.

    The gradient of a step is the sum of the clipped per-example gradients of a random batch, plus noise. An example
    whose gradient is not finite, or can't be computed at all, counts as zero: the noise is added all the same. The sum
    is divided neither by the size of the batch nor by the number of examples, which is the client's secret: AdamW does
    not depend on the scale of the gradient.

    Args:
        modality: makes batches and outputs; the loss of an example is the sum of the cross-entropy over its supervised
            rows.
        model: its trainable parameters are tuned, all of which must belong to linear layers; the model is left in
            evaluation mode.
        examples: the private part D_k.
        settings: AdamW and its schedule; `at_once` is the number of examples in memory at once, and does not change
            the result.
        privacy: clipping, noise, sampling rate and number of steps.
        where: name of the loop, for progress and error messages.

    Raises:
        NonFiniteError: the adapter became NaN or infinite.
        UserError: opacus is not installed, the modality or the adapter has no per-example gradients, or the model
            mixes the examples of a batch.
    """
    _check_loss_of(modality)
    stream = SecureStream()
    with unfused(model):  # opacus puts hooks on single layers
        check_apart(modality, model, examples, where)
        hooks, optimizer = _private_optimizer(model, settings, privacy, stream)
        schedule = scheduler(optimizer.original_optimizer, settings, privacy.steps)
        model.train()
        try:
            for _ in track(range(privacy.steps), where, total=privacy.steps):
                drawn = np.flatnonzero(stream.uniform(len(examples)) < privacy.sampling_rate)
                _step(modality, model, [examples[i] for i in drawn.tolist()], settings.at_once, optimizer)
                if schedule is not None:
                    schedule.step()
        finally:
            hooks.cleanup()
            for parameter in optimizer.params:
                del parameter.summed_grad
            model.eval()
    check_finite_weights(where, model)


def _check_loss_of(modality: Modality) -> None:
    """Raise UserError if a modality has a loss of its own, whose per-example gradients are not known."""
    if type(modality).loss is not Modality.loss:
        raise UserError(
            f"federation.privacy.level: example needs a cross-entropy over classes, and {modality.name} has a loss of "
            "its own. Set federation.privacy.level: client."
        )


def _private_optimizer(
    model: nn.Module, settings: ClientConfig, privacy: ExamplePrivacy, stream: SecureStream
) -> tuple[Any, Any]:
    """Return the hooks of opacus on the model, which must be cleaned up, and its optimizer, which adds our noise.

    Raises:
        UserError: opacus is not installed, or a trainable parameter does not belong to a linear layer.
    """
    try:
        from opacus.grad_sample import GradSampleHooks  # pyright: ignore[reportMissingTypeStubs]
        from opacus.optimizers import DPOptimizer  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise missing("opacus") from error
    _check_linear(model)
    hooks = GradSampleHooks(model, loss_reduction="sum")
    optimizer = DPOptimizer(
        adamw(model, settings),
        noise_multiplier=0.0,  # opacus clips and sums; the hook below adds the noise at every step
        max_grad_norm=privacy.clip,
        expected_batch_size=None,
        loss_reduction="sum",
    )

    def add_noise(optimizer: DPOptimizer) -> None:
        for parameter in optimizer.params:
            _add_noise(parameter, privacy.noise_multiplier * privacy.clip, stream)

    optimizer.attach_step_hook(add_noise)
    return hooks, optimizer


def _check_linear(model: nn.Module) -> None:
    """Raise UserError if a trainable parameter does not belong to a linear layer."""
    modules: Iterable[tuple[str, nn.Module]] = cast(Any, model).named_modules()
    for name, module in modules:
        own = any(p.requires_grad for p in module.parameters(recurse=False))
        if own and not isinstance(module, nn.Linear):
            raise UserError(
                "federation.privacy.level: example needs per-example gradients, which exist for linear layers only, "
                f"and {name} is a {type(module).__name__}. Set slm.adapter.kind: lora without options, and "
                "slm.adapter.targets to linear layers."
            )


def _step(modality: Modality, model: nn.Module, examples: Sequence[Any], batch_size: int, optimizer: Any) -> None:
    """Make one optimizer step on a random batch, with `batch_size` examples in memory at once."""
    near = sorted(examples, key=lambda example: _size(modality, example))
    chunks = [near[i : i + batch_size] for i in range(0, len(near), batch_size)] or [[]]
    for number, chunk in enumerate(chunks, start=1):
        _gradients(modality, model, chunk)
        optimizer.signal_skip_step(number < len(chunks))  # until the last chunk, opacus only clips and sums
        with _exact_products():
            optimizer.step()
        optimizer.zero_grad()


def _size(modality: Modality, example: Any) -> int:
    """Return the size of an example; 0 if it can't be told, as its gradient then can't be computed either."""
    try:
        return modality.size(example)
    except Exception:  # anything here may depend on the data
        return 0


def _gradients(modality: Modality, model: nn.Module, examples: Sequence[Any]) -> None:
    """Leave the per-example gradients in `grad_sample`; of an example without a finite one, zeros.

    If a batch fails, its examples are tried one by one, so that each can spoil its own gradient only.
    """
    try:
        _backward(modality, model, examples)
    except Exception:  # anything here may depend on the data
        parts = [_gradient(modality, model, example) for example in examples]
        for parameter, samples in zip(_trained(model), zip(*parts, strict=True), strict=True):
            parameter.grad_sample = torch.cat(samples)
    _drop_non_finite(_trained(model))


def _gradient(modality: Modality, model: nn.Module, example: Any) -> list[torch.Tensor]:
    """Return the gradient of one example, [1, *shape] for each trained parameter; zeros if it can't be computed."""
    try:
        _forget_batch(model)
        _backward(modality, model, [example])
        return [parameter.grad_sample for parameter in _trained(model)]
    except Exception:  # anything here may depend on the data
        return [parameter.new_zeros(1, *parameter.shape) for parameter in _trained(model)]
    finally:
        _forget_batch(model)


def _forget_batch(model: nn.Module) -> None:
    """Remove what opacus has noted of a batch whose backward pass did not come to its end."""
    for module in cast(Iterable[Any], model.modules()):
        if hasattr(module, "activations") and not isinstance(module.activations, nn.Module):
            module.activations = []
        if hasattr(module, "max_batch_len"):
            del module.max_batch_len
    for parameter in _trained(model):
        parameter.grad_sample, parameter.grad, parameter._forward_counter = None, None, 0
        if hasattr(parameter, "_current_grad_sample"):
            del parameter._current_grad_sample


def _drop_non_finite(parameters: Sequence[Any]) -> None:
    """Set all gradients of an example to zero if their norm is NaN, infinite, or too large for opacus to clip it."""
    squares = [parameter.grad_sample.double().flatten(1).square().sum(dim=1) for parameter in parameters]
    kept = torch.stack(squares).sum(dim=0) <= _LARGEST_SQUARE
    if not bool(kept.all()):
        for parameter in parameters:
            parameter.grad_sample[~kept] = 0.0


def _trained(model: nn.Module) -> list[Any]:
    """Return the trainable parameters, to which opacus adds attributes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _backward(modality: Modality, model: nn.Module, examples: Sequence[Any]) -> None:
    """Leave the per-example gradients in the attribute `grad_sample` of each parameter, [examples, *shape]."""
    if not examples:  # a random batch may be empty, and the step must not reveal that it was
        for parameter in model.parameters():
            if parameter.requires_grad:
                cast(Any, parameter).grad_sample = parameter.new_zeros(0, *parameter.shape)
        return
    batch = modality.collate(examples)
    logits = modality.logits(model, batch)
    loss = functional.cross_entropy(
        logits, modality.targets(batch).to(logits.device), ignore_index=UNLABELLED, reduction="sum"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")  # the first layer's input is data
        torch.autograd.backward(loss)


@contextlib.contextmanager
def _exact_products() -> Generator[None, None, None]:
    """Let opacus sum clipped gradients in float32, even if the run allows bfloat16 products.

    A bfloat16 product is wrong by up to 0.4 %, by which an example could exceed the clipping norm.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _add_noise(parameter: nn.Parameter, deviation: float, stream: SecureStream) -> None:
    """Round the gradient to a fine grid and add discrete Gaussian noise on the same grid.

    The lowest bits of floating-point noise would reveal the gradient (Mironov 2012); those of a sum on a grid do not.
    Rounding adds at most one grid step per parameter to the influence of an example: a millionth of the clipping norm
    for a million parameters.

    Args:
        parameter: its `grad` is changed in place.
        deviation: standard deviation of the noise.
        stream: source of the noise.
    """
    gradient = parameter.grad
    assert gradient is not None
    step = deviation * 2.0**-_GRID_BITS
    noise = torch.as_tensor(discrete_gaussian(4.0**_GRID_BITS, parameter.numel(), stream)).view(parameter.shape)
    total = (gradient.double() / step).round() + noise.to(gradient.device)
    parameter.grad = (total * step).to(gradient.dtype)
