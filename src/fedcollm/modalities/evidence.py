"""Examples as the rows and targets of a regression, for controls that are solved in closed form."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedcollm.errors import UserError

#: Largest number of choices that an example may have if it has choices of its own.
MOST_CHOICES = 26

#: Room for the rounding of a row's norm, which must not exceed 1.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Evidence:
    """The regression rows of several examples.

    If all examples share their labels, each has one row and C targets, one per label. If each has choices of its own,
    it has one row per choice and a single target.

    Attributes:
        rows: [R, d] float32, the features, with an L2 norm of at most 1 per row.
        targets: [R, C] float32: +1 for the right label or choice, -1 for the others, 0 for an unlabelled example.
        counts: the number of rows of each example, whose rows follow one another.
        labels: the C labels that all examples share; empty if each example has choices of its own.
    """

    rows: Tensor
    targets: Tensor
    counts: tuple[int, ...]
    labels: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """The numbers of features and of targets, d and C."""
        return self.rows.shape[1], self.targets.shape[1]

    def by_example(self, values: Tensor) -> list[Tensor]:
        """Return the values of each example's labels or choices, [C_i], given the values of all rows, [R, C]."""
        if self.labels:
            return list(values.unbind())
        return [part.squeeze(1) for part in torch.split(values, list(self.counts))]


def with_labels(rows: Tensor, labels: Sequence[str], answers: Sequence[int | None]) -> Evidence:
    """Return the evidence of examples that share their labels.

    Args:
        rows: [R, d], one row per example.
        labels: the C labels.
        answers: for each example, the index of its label, or None if it is unlabelled.
    """
    targets = torch.zeros(len(answers), len(labels))
    for i, answer in enumerate(answers):
        if answer is not None:
            targets[i] = -1.0
            targets[i, answer] = 1.0
    return Evidence(rows, targets, (1,) * len(answers), tuple(labels))


def with_choices(rows: Tensor, counts: Sequence[int], answers: Sequence[int | None]) -> Evidence:
    """Return the evidence of examples that each have choices of their own.

    Args:
        rows: [R, d], one row per choice, example by example.
        counts: the number of choices of each example.
        answers: for each example, the index of its right choice, or None if it is unlabelled.
    """
    parts = [with_labels(rows, ["-"] * n, [a]).targets[0] for n, a in zip(counts, answers, strict=True)]
    return Evidence(rows, torch.cat(parts)[:, None], tuple(counts))


def places(counts: Sequence[int]) -> Tensor:
    """Return features that tell only in which place a choice stands: [R, MOST_CHOICES], 1 in the column of its place.

    Raises:
        UserError: an example has more choices than there are columns.
    """
    if max(counts) > MOST_CHOICES:
        raise UserError(f"control: an example has {max(counts)} choices. Give at most {MOST_CHOICES}.")
    return torch.eye(MOST_CHOICES)[[place for count in counts for place in range(count)]]


def normalized(rows: Tensor) -> Tensor:
    """Return rows [R, d] with an L2 norm of 1, in float32 on the CPU; a row of zeros stays as it is."""
    return functional.normalize(rows.float().cpu(), dim=1)


def joined(first: Tensor, second: Tensor, weight: float = 2.0) -> Tensor:
    """Return two kinds of features side by side, the second one times a weight, with an L2 norm of at most 1.

    Args:
        first: [R, d] with norms of at most 1.
        second: [R, e] with norms of at most 1.
        weight: factor of the second kind, relative to the first.
    """
    return torch.cat([first, weight * second], dim=1) / (1 + weight**2) ** 0.5


def head_inputs(head: nn.Module, forward: Callable[[], object]) -> Tensor:
    """Return what a model's output layer reads in a forward pass: its last hidden states, [R, d].

    Args:
        head: the output layer. If it is called several times, the rows of all calls follow each other.
        forward: does the forward pass.
    """
    seen: list[Tensor] = []
    hook = cast(Any, head).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))  # pyright: ignore
    try:
        with torch.no_grad():
            forward()
    finally:
        hook.remove()
    return torch.cat([states.flatten(0, -2) if states.dim() == 3 else states.flatten(1) for states in seen])


def checked(evidence: Evidence, examples: Sequence[Any], modality: object) -> Evidence:
    """Return evidence as it is, checked.

    Raises:
        UserError: a modality of one's own returns rows that do not fit its examples, rows that are too long, or targets
            that are not from -1 to 1.
    """
    rows, targets, counts = evidence.rows, evidence.targets, evidence.counts
    columns = len(evidence.labels) or 1
    if len(counts) != len(examples) or targets.shape != (sum(counts), columns) or len(rows) != sum(counts):
        raise UserError(
            f"{type(modality).__name__}.evidence returned rows {list(rows.shape)}, targets {list(targets.shape)} and "
            f"counts of {len(counts)} examples for {len(examples)} examples with {columns} targets. Return one row per "
            "example and one target per label, or one row per choice and a single target."
        )
    longest = float(torch.sum(rows.double().square(), dim=1).max().sqrt())
    if not longest <= 1 + _ROUNDING:
        raise UserError(
            f"{type(modality).__name__}.evidence returned a row with an L2 norm of {longest:.4g}. Divide each row by "
            "its norm."
        )
    largest = float(targets.abs().max())
    if not largest <= 1 + _ROUNDING:
        raise UserError(
            f"{type(modality).__name__}.evidence returned a target of magnitude {largest:.4g}. Return 1 for the right "
            "label or choice, -1 for the others, and 0 for an unlabelled example."
        )
    return evidence
