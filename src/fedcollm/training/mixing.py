"""Whether a model computes each example by itself, as the clipping of per-example gradients takes for granted.

A layer that mixes the examples of a batch, such as batch normalization, lets one example change the gradients of the
others. Clipping then bounds nothing. What matters is what a model does, not the classes of its layers.
"""

import contextlib
from collections.abc import Generator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedcollm.errors import UserError
from fedcollm.modalities.base import UNLABELLED, Modality

_EXAMPLES, _LOOKED_AT = 4, 16
_EXACT, _HALF = 1e-3, 0.1  # largest relative difference of losses by rounding, in float32 and in 16 bits

_DROPOUTS = {
    *(getattr(functional, name) for name in ("dropout", "dropout1d", "dropout2d", "dropout3d")),
    *(getattr(functional, name) for name in ("alpha_dropout", "feature_alpha_dropout")),
    *(getattr(torch, name) for name in ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")),
}


class _WithoutDropout(TorchFunctionMode):
    """Let nothing be dropped, whichever way a model drops it in training, so that two passes can be compared."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is functional.scaled_dot_product_attention:
            args, kwargs["dropout_p"] = (*args[:4], *args[5:]) if len(args) <= 5 else args, 0.0
        result = func(*args, **kwargs)
        if func in (torch.rand, torch.rand_like):
            return torch.full_like(result, 0.5)  # stochastic depth keeps a layer that is kept half of the time
        return torch.ones_like(result) if func in (torch.bernoulli, torch.Tensor.bernoulli_) else result


def check_apart(modality: Modality, model: nn.Module, examples: Sequence[Any], where: str) -> None:
    """Check, on a few examples, that in training their losses do not depend on which of them are in a batch together.

    Examples that can't be computed, alone or twice in a batch, are left out. Of a single example, two copies are looked
    at, which tells less. A model that is random in other ways than dropout is checked for
    changed buffers only. The model is left in evaluation mode.

    Args:
        modality: makes batches and outputs.
        model: the model, without hooks of other libraries.
        examples: the client's examples.
        where: name of the loop, for the message.

    Raises:
        UserError: the losses depend on it, or the model keeps statistics of its batches.
    """
    model.eval()
    usable = [
        x for x in examples[:_LOOKED_AT] if any(_losses(modality, model, some) is not None for some in ([x], [x, x]))
    ]
    usable = usable[:_EXAMPLES]
    if not usable:
        return
    batch = usable * 2 if len(usable) == 1 else usable
    model.train()
    try:
        with _kept_buffers(model) as before, _WithoutDropout():
            together, again = (_losses(modality, model, batch) for _ in range(2))
            moved = any(not torch.equal(buffer, before[name]) for name, buffer in _buffers(model))
            apart = [_losses(modality, model, [x]) for x in batch]
    finally:
        model.eval()
    if moved or (together is not None and not _same(together, again, apart, _tolerance(model))):
        what = "keeps statistics of its batches" if moved else "mixes the examples of a batch"
        raise UserError(
            f"federation.privacy.level: example needs a model that computes each example by itself, and in {where} it "
            f"{what}, as batch normalization does. Set federation.privacy.level: client, or let such layers use fixed "
            "statistics in training too."
        )


def _same(together: Tensor, again: Tensor | None, apart: list[Tensor | None], room: float) -> bool:
    """Return whether losses in a batch are those of the examples alone, except for rounding."""
    alone = [losses for losses in apart if losses is not None]
    if len(alone) < len(apart):
        return False
    if again is None or not torch.allclose(together, again, rtol=room, atol=room, equal_nan=True):
        return True  # random in another way, so that nothing can be said
    joined = torch.cat(alone).sort().values
    return joined.shape == together.shape and torch.allclose(joined, together, rtol=room, atol=room, equal_nan=True)


def _losses(modality: Modality, model: nn.Module, examples: Sequence[Any]) -> Tensor | None:
    """Return the losses of all supervised rows, sorted, [rows] float32; None if they can't be computed."""
    try:
        with torch.no_grad():
            batch = modality.collate(examples)
            logits = modality.logits(model, batch).float()
            targets = modality.targets(batch).to(logits.device)
            losses = functional.cross_entropy(logits, targets, ignore_index=UNLABELLED, reduction="none")
            return losses.cpu().sort().values
    except Exception:  # anything here may depend on the data
        return None


def _tolerance(model: nn.Module) -> float:
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    return _HALF if half or torch.get_float32_matmul_precision() == "medium" else _EXACT


def _buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, buffer) for name, buffer in model.named_buffers() if buffer.is_floating_point()]


@contextlib.contextmanager
def _kept_buffers(model: nn.Module) -> Generator[dict[str, Tensor], None, None]:
    """Yield copies of the buffers by name, and set them back at the end."""
    before = {name: buffer.clone() for name, buffer in cast(Any, model).named_buffers()}
    try:
        yield before
    finally:
        with torch.no_grad():
            for name, buffer in cast(Any, model).named_buffers():
                if name in before and buffer.shape == before[name].shape:
                    buffer.copy_(before[name])
