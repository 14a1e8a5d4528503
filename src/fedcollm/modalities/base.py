"""The modality interface: all that the loop knows of text, vision or speech."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from fedcollm.messages import Score

#: Target of an output row whose example has no label: it counts in the KL mean, not in the CE mean.
UNLABELLED = -100


class Example(Protocol):
    """One example as the loop sees it; a task's own examples carry more."""

    @property
    def id(self) -> str:
        """Unique within its file."""
        ...

    @property
    def label(self) -> str | None:
        """Class name (or answer) for partitioning by label; None if unlabelled."""
        ...

    @property
    def group(self) -> str | None:
        """Natural client id (hospital, speaker, subject), where the data has one."""
        ...

    @property
    def content(self) -> str:
        """What makes two examples duplicates of each other: normalized input, without label."""
        ...

    def without_label(self) -> "Example":
        """The same example as the server's unlabelled public part holds it."""
        ...


class Collator(Protocol):
    """How examples become batches of like size."""

    def size(self, example: Any) -> int:
        """Cost of one example (tokens, frames); batches group examples of like size."""
        ...

    def collate(self, examples: Sequence[Any]) -> Any:
        """One batch for both models, on the CPU."""
        ...


@runtime_checkable
class Task(Collator, Protocol):
    """A modality: how examples become a batch, logits and a score.

    `Batch` is opaque to the loop: whatever `collate` returns goes to `logits` and `targets`.
    """

    @property
    def name(self) -> str:
        """Name of the task, for reports."""
        ...

    @property
    def metric(self) -> str:
        """Name of the main metric, for reports (`accuracy`)."""
        ...

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """[P, V]: one row a supervised position over the output space common to both models."""
        ...

    def targets(self, batch: Any) -> Tensor:
        """[P] int64: the right column of each row of `logits`, or `UNLABELLED`."""
        ...

    def score(self, model: nn.Module, examples: Sequence[Any]) -> Score:
        """Sums of the metrics of a model in evaluation mode over these examples."""
        ...


@dataclass(frozen=True)
class Pool:
    """Examples as a task's source delivers them, before they are split.

    Attributes:
        train: examples for the private parts, and for the public part unless it has a source of its own.
        test: examples for scoring, or None if they are to be taken from `train`.
        public: examples for D_a, where its source is another than the private parts'.
    """

    train: Sequence[Any]
    test: Sequence[Any] | None = None
    public: Sequence[Any] | None = None


@dataclass(frozen=True)
class Split:
    """Disjoint parts of the data.

    Attributes:
        public: D_a, labelled examples first, then unlabelled ones.
        private: client id to D_k.
        test: examples for scoring.
        duplicates_removed: examples dropped because their content stands elsewhere too.
    """

    public: list[Any]
    private: dict[str, list[Any]]
    test: list[Any]
    duplicates_removed: int = 0
    notes: list[str] = field(default_factory=list)
