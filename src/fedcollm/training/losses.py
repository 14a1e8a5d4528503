"""Supervised losses that wrong labels mislead less, computed row by row from the probability of the label.

Each loss is a row of `LOSSES` in `config/choices.py`, under the same name.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from fedcollm.config import ClientConfig
from fedcollm.errors import UserError
from fedcollm.modalities.base import UNLABELLED, Modality

#: A of the reverse cross-entropy, which stands for log 0: the value of Wang et al. (arXiv 1908.06112, section 5).
_LOG_ZERO = -4.0

#: q below which (1 − p^q) / q is −log p to the last digit of float32, and q itself may round to 0.
_ZERO_Q = 1e-20


def cross_entropy(log_label: Tensor, settings: ClientConfig) -> Tensor:
    """Return −log p of the label: [P], from log p [P]."""
    return -log_label


def generalized(log_label: Tensor, settings: ClientConfig) -> Tensor:
    """Return (1 − p^q) / q: [P], from log p [P] (Zhang and Sabuncu, arXiv 1805.07836, eq. 6).

    Its gradient is that of cross-entropy times p^q, so a row whose label the model finds unlikely counts less. As q
    approaches 0, it becomes the cross-entropy; with q = 1, it is half of the mean absolute error.
    """
    if settings.loss_q < _ZERO_Q:
        return -log_label
    return -torch.expm1(settings.loss_q * log_label) / settings.loss_q


def symmetric(log_label: Tensor, settings: ClientConfig) -> Tensor:
    """Return α times the cross-entropy plus β times the reverse one: [P], from log p [P].

    Source: Wang et al., arXiv 1908.06112, eq. 8. The reverse cross-entropy −Σ p log y is −A (1 − p) for a label of one
    class, where A = −4 stands for log 0.
    """
    forward, reverse = settings.loss_weights
    return -forward * log_label + reverse * _LOG_ZERO * torch.expm1(log_label)


LOSSES: Mapping[str, Callable[[Tensor, ClientConfig], Tensor]] = {
    "cross_entropy": cross_entropy,
    "generalized": generalized,
    "symmetric": symmetric,
}


def loss_of_rows(logits: Tensor, targets: Tensor, settings: ClientConfig) -> Tensor:
    """Return the client's loss as a mean over labelled rows: a scalar, zero with a zero gradient if there are none.

    With `loss_trim`, the rows with the largest losses are left out, as co-teaching does with examples (Han et al.,
    arXiv 1804.06872): early in training, a row with a wrong label is among them more often than another one.

    Args:
        logits: [P, V].
        targets: [P] int64; rows with the target `UNLABELLED` don't count.
        settings: the loss and its parameters.
    """
    labelled = targets != UNLABELLED
    log_labels = functional.log_softmax(logits[labelled], dim=-1).gather(-1, targets[labelled, None])[:, 0]
    rows = LOSSES[settings.loss](log_labels, settings)
    kept = len(rows) - int(settings.loss_trim * len(rows))
    if kept < len(rows):
        rows = rows.topk(kept, largest=False).values
    return rows.sum() / max(kept, 1)


def check_loss_fits(modality: Modality, settings: ClientConfig) -> None:
    """Check that the client's loss is one that this modality can have.

    Raises:
        UserError: the loss is not plain cross-entropy, and the modality has a loss of its own.
    """
    if settings.has_plain_loss or type(modality).loss is Modality.loss:
        return
    key, value, instead = settings.changed_loss
    raise UserError(
        f"{key} {value} needs a cross-entropy over classes or tokens, and {modality.name} has a loss of its own. "
        f"Set {key}: {instead}."
    )
