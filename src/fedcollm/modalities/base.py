"""The modality contract: all that the loop knows of text, vision or speech.

A modality says how its models are loaded, how examples become a batch, what the models make of it, and how that is
scored and shown. The loop, the federation, the transports and deployment know nothing else of it. To co-tune your own
networks on your own data, derive from `Modality` and pass an instance: `fedcollm.run(config, modality=..., pool=...)`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.messages import Score

#: Target of an output row whose example has no label: it counts in the KL mean, but not in the CE mean.
UNLABELLED = -100


class Example(Protocol):
    """One example as the loop sees it; a modality's own examples carry more."""

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
        """What makes two examples duplicates of each other: the input without its label."""
        ...

    def without_label(self) -> "Example":
        """Return the example as the unlabelled part of the public data holds it."""
        ...


@dataclass(frozen=True)
class Rows:
    """Both models' outputs, matched row by row, as distillation compares them.

    Attributes:
        slm: [P, V] logits over the shared output space.
        llm: [P, V] logits over the same space.
        slm_targets: [P] int64, the right column of each row for the SLM, or `UNLABELLED`.
        llm_targets: [P] int64, the same for the LLM; they differ only where the models have different tokenizers.
    """

    slm: Tensor
    llm: Tensor
    slm_targets: Tensor
    llm_targets: Tensor


class Modality(ABC):
    """How examples of one kind become batches, outputs, losses and scores.

    A batch is opaque to the loop: whatever `collate` returns goes to `logits`, `targets` and `loss`.

    Attributes:
        name: name of the task, for reports.
        metric: name of the main metric, for reports.
        causal_lm: whether its models are causal language models of transformers, which PEFT must know.
        options: what the outputs and scores depend on besides models and examples, as plain values; part of cache keys.
    """

    name: str
    metric: str = "accuracy"
    causal_lm: ClassVar[bool] = False
    options: Mapping[str, Any] = {}

    # models

    @abstractmethod
    def load_model(self, section: ModelConfig, role: str, device: torch.device, seed: int) -> nn.Module:
        """Return the base network of a role, in its dtype, on its device.

        Args:
            section: `llm` or `slm` of the configuration.
            role: `slm` or `llm`.
            device: where the network will compute.
            seed: seeds whatever is random in a base without pretrained weights; the same for every resumed run.

        Raises:
            UserError: the source does not exist or does not fit.
        """

    def outline(self, section: ModelConfig) -> nn.Module:
        """Return the same network without weights (on torch's `meta` device), for estimates of its size."""
        with torch.device("meta"):
            return self.load_model(section, "slm", torch.device("meta"), 0)

    def prepare(self, section: ModelConfig) -> None:
        """Convert and cut the base of a role once, before several processes would all do it. By default, do nothing.

        Raises:
            UserError: the source does not exist or does not fit.
        """

    def is_pretrained(self, section: ModelConfig) -> bool:
        """Return whether the base has weights of its own, instead of random ones that depend on the run's seed."""
        return True

    def slm_layers(self, slm: ModelConfig, llm: nn.Module) -> list[int]:
        """Return the index in the LLM of every layer of the SLM, which was cut from it.

        Raises:
            UserError: models of this modality are not cut from each other.
        """
        raise UserError(
            f"server.layer_transfer: the models of {self.name} are not cut from each other. "
            "Set server.layer_transfer: 0."
        )

    # batches

    def size(self, example: Any) -> int:
        """Return the cost of one example (tokens, frames); batches group examples of similar size."""
        return 1

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> Any:
        """Return one batch for both models, on the CPU."""

    @abstractmethod
    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Return [P, V] float32: one row per supervised position, over the output space common to both models."""

    def targets(self, batch: Any) -> Tensor:
        """Return [P] int64: the right column of each row of `logits`, or `UNLABELLED`.

        A modality with a `loss` of its own need not have targets per row: all rows then count as unlabelled where one
        model is chosen to teach the other.
        """
        raise NotImplementedError

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the supervised loss of a batch, a scalar: by default the mean cross-entropy over labelled rows.

        It is zero, with a zero gradient, where nothing is labelled.
        """
        return cross_entropy(logits, self.targets(batch).to(logits.device))

    def labelled(self, batch: Any) -> int:
        """Return the number of rows or examples that `loss` is a mean over."""
        return int((self.targets(batch) != UNLABELLED).sum())

    # two models

    def of(self, role: str) -> "Modality":
        """Return the modality as one role's model needs it: itself, unless the models have different tokenizers."""
        return self

    def part(self, batch: Any, role: str) -> Any:
        """Return what one role's model reads of a batch: all of it, unless the models have different tokenizers."""
        return batch

    def rows(self, batch: Any) -> int:
        """Return the number of rows that `align` returns for a batch."""
        return len(self.targets(batch))

    def align(self, batch: Any, slm_logits: Tensor, llm_logits: Tensor) -> Rows:
        """Return both models' outputs matched row by row; by default they already are.

        Args:
            batch: as `collate` made it.
            slm_logits: [P, V], from `of("slm")`.
            llm_logits: [Q, W], from `of("llm")`, on the same device.
        """
        targets = self.targets(batch).to(slm_logits.device)
        return Rows(slm_logits, llm_logits, targets, targets)

    # results

    @abstractmethod
    def score(self, model: nn.Module, examples: Sequence[Any]) -> Score:
        """Return sums of the metrics of a model in evaluation mode over these examples."""

    def show(self, example: Any, prediction: Any = None) -> str:
        """Return an example, and what was predicted for it, as one line of plain text for reports."""
        said = "" if prediction is None else f" → {prediction}"
        return f"{example.id}: {example.label}{said}"

    def to_wire(self) -> dict[str, Any]:
        """Return what outputs and scores depend on besides models and examples, as plain values: part of cache keys."""
        return {"name": self.name, "metric": self.metric, "options": dict(self.options)}

    # estimates and files

    def footprint(self, example: Any, shape: Any, scoring: bool = False) -> tuple[int, int]:
        """Return an estimate of the positions (tokens, patches) that an example takes in a model, and its output rows.

        Args:
            example: one example; None for a typical one that is not at hand.
            shape: the network's own configuration.
            scoring: whether it is scored, not trained on.
        """
        return self.size(example) if example is not None else 1, 1

    def notes(self) -> list[str]:
        """Return what a reader of the results should know of the data as it was read, a sentence each."""
        return []

    def facts(self) -> dict[str, int]:
        """Return what a client elsewhere, which has the SLM only, must be told to build this modality."""
        return {}

    def write_examples(self, examples: Sequence[Any]) -> str:
        """Return examples as JSON lines, for a client elsewhere.

        Raises:
            UserError: examples of this modality can't be written yet. It is raised for an empty sequence too, so that
                a caller can find out beforehand.
        """
        raise UserError(f"examples of {self.name} can't be written to a file: it works in one process only.")

    def read_examples(self, path: Path) -> list[Any]:
        """Return examples that `write_examples` wrote.

        Raises:
            UserError: the file can't be read, or examples of this modality can't be read from files yet.
        """
        raise UserError(f"examples of {self.name} can't be read from a file: it works in one process only.")


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over labelled rows; zero, with a zero gradient, if there are none.

    Args:
        logits: [P, V].
        targets: [P] int64; rows with `UNLABELLED` don't count.
    """
    labelled = (targets != UNLABELLED).sum().clamp(min=1)
    return functional.cross_entropy(logits, targets, ignore_index=UNLABELLED, reduction="sum") / labelled


@dataclass(frozen=True)
class Pool:
    """Examples as a source delivers them, before they are split.

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
        duplicates_removed: number of examples dropped because their content stands elsewhere too.
        notes: what a reader of the results should know of the split, a sentence each.
    """

    public: list[Any]
    private: dict[str, list[Any]]
    test: list[Any]
    duplicates_removed: int = 0
    notes: list[str] = field(default_factory=list)
