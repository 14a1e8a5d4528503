"""The modality contract: everything that the training loop knows about text, vision or speech.

A modality defines how its models are loaded, how examples become a batch, what the models compute from a batch, and how
their outputs are scored and shown. The training loop, the federation, the transports and deployment know nothing else
about it. To co-tune your own networks on your own data, subclass `Modality` and pass an instance:
`fedcollm.run(config, modality=..., pool=...)`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedcollm.config import ModelConfig, StatisticsConfig
from fedcollm.errors import UserError
from fedcollm.messages import Score
from fedcollm.modalities.evidence import Evidence
from fedcollm.modalities.exhibits import Answer, Exhibit
from fedcollm.modalities.predictions import Prediction

#: Target of an output row whose example has no label. Such rows count in the mean of the KL, but not of cross-entropy.
UNLABELLED = -100


class Example(Protocol):
    """One example as the training loop sees it. The examples of a modality have further attributes."""

    @property
    def id(self) -> str:
        """Id of the example, unique within its file."""
        ...

    @property
    def label(self) -> str | None:
        """Class name or answer, for partitioning by label; None if unlabelled."""
        ...

    @property
    def group(self) -> str | None:
        """Natural client of the example (hospital, speaker, subject), if the data has one."""
        ...

    @property
    def content(self) -> str:
        """The input without its label. Two examples with equal content are duplicates."""
        ...

    def without_label(self) -> "Example":
        """Return the example without its label, for the unlabelled part of the public set."""
        ...


@dataclass(frozen=True)
class Values:
    """The continuous outputs of both models, such as boxes, matched row by row.

    Attributes:
        slm: [P, D] values of the SLM, scaled so that their L1 distance counts as much as the KL.
        llm: [P, D] values of the LLM, in the same scale.
        slm_weights: [P] how much each row counts when the SLM teaches the LLM.
        llm_weights: [P] how much each row counts when the LLM teaches the SLM.
    """

    slm: Tensor
    llm: Tensor
    slm_weights: Tensor
    llm_weights: Tensor


@dataclass(frozen=True)
class Rows:
    """The outputs of both models, matched row by row, for distillation.

    Attributes:
        slm: [P, V] logits of the SLM over the shared output space.
        llm: [P, V] logits of the LLM over the same space.
        slm_targets: [P] int64, the correct column of each row for the SLM, or `UNLABELLED`.
        llm_targets: [P] int64, the same for the LLM. They differ only if the models have different tokenizers.
        weights: [P] how much each row counts in the mean of the divergence; None if all rows count alike.
        values: continuous outputs that are distilled beside the logits; None if there are none.
    """

    slm: Tensor
    llm: Tensor
    slm_targets: Tensor
    llm_targets: Tensor
    weights: Tensor | None = None
    values: Values | None = None


class Modality(ABC):
    """Defines how examples of one kind become batches, outputs, losses and scores.

    A batch is opaque to the training loop, which passes the result of `collate` to `logits`, `targets` and `loss`.

    Attributes:
        name: name of the task, for reports.
        metric: name of the main metric, for reports.
        causal_lm: whether the models are causal language models of transformers, as PEFT needs to know.
        scores_together: whether `score` gets all examples in one call, for metrics that are no mean over examples. It
            then makes batches of its own.
        options: everything besides models and examples that outputs and scores depend on, as plain values for cache
            keys.
    """

    name: str
    metric: str = "accuracy"
    causal_lm: ClassVar[bool] = False
    scores_together: ClassVar[bool] = False
    options: Mapping[str, Any] = {}

    # models

    @abstractmethod
    def load_model(self, section: ModelConfig, role: str, device: torch.device, seed: int) -> nn.Module:
        """Return the base network of a role, in its dtype, on a device.

        Args:
            section: the section `llm` or `slm` of the configuration.
            role: `slm` or `llm`.
            device: the device on which the network will run.
            seed: seed of the random weights of a base network that is not pretrained. A resumed run has the same seed.

        Raises:
            UserError: the source does not exist or is unsuitable.
        """

    def outline(self, section: ModelConfig) -> nn.Module:
        """Return the same network without weights (on torch's `meta` device), to estimate its size."""
        with torch.device("meta"):
            return self.load_model(section, "slm", torch.device("meta"), 0)

    def prepare(self, section: ModelConfig) -> None:  # noqa: B027 - most modalities have nothing to prepare
        """Convert and cut the base network of a role once, before several processes need it. By default, do nothing.

        Raises:
            UserError: the source does not exist or is unsuitable.
        """

    def is_pretrained(self, section: ModelConfig) -> bool:
        """Return whether the base network has pretrained weights, not random ones that depend on the run's seed."""
        return True

    def trained_modules(self, network: nn.Module) -> Sequence[str]:
        """Return the names of modules that are trained as a whole and travel with the adapter, such as a fresh head.

        Args:
            network: a network from `load_model` or `outline`.
        """
        return ()

    def adapted_layers(self, network: nn.Module) -> Sequence[str] | None:
        """Return the names of the layers that `adapter.targets: auto` stands for; None for all linear layers.

        Args:
            network: a network from `load_model` or `outline`.
        """
        return None

    def slm_layers(self, slm: ModelConfig, llm: nn.Module) -> list[int]:
        """Return the index within the LLM of each layer of an SLM that consists of layers of the LLM.

        Args:
            slm: the section `slm` of the configuration.
            llm: the LLM's network.

        Raises:
            UserError: an SLM of this modality never consists of layers of the LLM.
        """
        raise UserError(
            f"server.layer_transfer: an SLM of {self.name} does not consist of layers of the LLM. "
            "Set server.layer_transfer: 0."
        )

    # batches

    def size(self, example: Any) -> int:
        """Return the cost of one example, such as its tokens or frames. Batches contain examples of similar size."""
        return 1

    def lengths(self, example: Any) -> Mapping[str, int]:
        """Return the lengths of an example that a user can judge, under names with their unit; `check` shows them."""
        return {"size": self.size(example)}

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> Any:
        """Return one batch for both models, on the CPU."""

    @abstractmethod
    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Return [P, V] float32 logits: one row per supervised position, over the output space that models share."""

    def targets(self, batch: Any) -> Tensor:
        """Return [P] int64: the correct column of each row of `logits`, or `UNLABELLED`.

        A modality with its own `loss` may return `UNLABELLED` for every row, and must then override `labelled`. All
        rows then count as unlabelled when `server.distillation.teach_where_better` compares the models.
        """
        raise NotImplementedError

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the supervised loss of a batch as a scalar, by default the mean cross-entropy over labelled rows.

        Without any label, the loss is zero and has a zero gradient.
        """
        return cross_entropy(logits, self.targets(batch).to(logits.device))

    def labelled(self, batch: Any) -> int:
        """Return the number of rows or examples over which `loss` is a mean."""
        return int((self.targets(batch) != UNLABELLED).sum())

    # two models

    def of(self, role: str) -> "Modality":
        """Return the modality for the model of one role: itself, unless the models have different tokenizers."""
        return self

    def part(self, batch: Any, role: str) -> Any:
        """Return the part of a batch for the model of one role: all, unless the models have different tokenizers."""
        return batch

    def rows(self, batch: Any) -> int:
        """Return the number of rows that `align` returns for a batch."""
        return len(self.targets(batch))

    def align(self, batch: Any, slm_logits: Tensor, llm_logits: Tensor) -> Rows:
        """Return the outputs of both models, matched row by row. By default, they match already.

        Args:
            batch: a batch from `collate`.
            slm_logits: [P, V] logits of `of("slm")`.
            llm_logits: [Q, W] logits of `of("llm")`, on the same device.
        """
        targets = self.targets(batch).to(slm_logits.device)
        return Rows(slm_logits, llm_logits, targets, targets)

    # results

    @abstractmethod
    def score(self, model: nn.Module, examples: Sequence[Any]) -> Score:
        """Return the metrics of a model in evaluation mode as sums over examples."""

    def evidence(self, examples: Sequence[Any], features: StatisticsConfig, model: nn.Module | None = None) -> Evidence:
        """Return examples as the rows of a regression, for a control in closed form; equal examples give equal rows.

        Args:
            examples: at least one example.
            features: the kind of features.
            model: the SLM, for the features `slm`.

        Raises:
            UserError: the examples have no choices, or this modality has no such features.
        """
        raise UserError(
            f"control and server.pseudo_labels: {self.name} has no features for a regression. Define "
            f"{type(self).__name__}.evidence, or leave out both keys and the methods majority and closed_form."
        )

    def probabilities(self, model: nn.Module, examples: Sequence[Any]) -> list[Tensor]:
        """Return [C_i] probabilities of each example's labels or choices, given a model in evaluation mode.

        Raises:
            UserError: the examples have no choices, or this modality does not say how likely they are.
        """
        raise UserError(
            f"server.pseudo_labels: {self.name} does not say how likely the labels of an example are. Define "
            f"{type(self).__name__}.probabilities, or set server.pseudo_labels.teachers: [regression]."
        )

    def exhibit(self, example: Any) -> Exhibit:
        """Return what a report shows of an example, without answers: here, only its id and its label."""
        return Exhibit(example.id, truth=example.label or "")

    def answers(self, model: nn.Module, examples: Sequence[Any]) -> list[Answer]:
        """Return what a model in evaluation mode says of labelled examples, for reports.

        By default, the answers are those of `score`, as far as its confusion tables and outcomes tell.
        """
        return [_answer(self.score(model, [example]), example.id) for example in examples]

    def predict(self, model: nn.Module, examples: Sequence[Any]) -> list[Prediction]:
        """Return what a model in evaluation mode predicts of examples without labels, as `score` would count it.

        Raises:
            UserError: this modality does not predict.
        """
        raise UserError(
            f"{self.name} does not say what a model predicts. Define {type(self).__name__}.predict, which returns a "
            "Prediction for each example."
        )

    def to_wire(self) -> dict[str, Any]:
        """Return what outputs and scores depend on besides models and examples, as plain values for cache keys."""
        return {"name": self.name, "metric": self.metric, "options": dict(self.options)}

    # estimates and files

    def footprint(self, example: Any, shape: Any, scoring: bool = False) -> tuple[int, int]:
        """Return estimates of the number of positions (tokens, patches) and of output rows of an example.

        Args:
            example: the example, or None for a typical one.
            shape: the network's own configuration.
            scoring: whether the example is scored instead of trained on.
        """
        return self.size(example) if example is not None else 1, 1

    def notes(self) -> list[str]:
        """Return sentences about the data that a reader of the results should know, such as how much was cut off."""
        return []

    def facts(self) -> dict[str, Any]:
        """Return what a deployed client, which has only the SLM, needs to know to build this modality.

        The values are numbers of at least 1, or lists of names.
        """
        return {}

    def write_examples(self, examples: Sequence[Any]) -> str:
        """Return examples as JSON lines, for a deployed client.

        Raises:
            UserError: this modality can't write examples. The error is also raised for an empty sequence, so that a
                caller can check beforehand.
        """
        raise UserError(
            f"examples of {self.name} can't be written to a file. Use `fedcollm run`, which needs no files of examples."
        )

    def read_examples(self, path: Path) -> list[Any]:
        """Return the examples that `write_examples` wrote.

        Raises:
            UserError: the file can't be read, or this modality can't read examples from files.
        """
        raise UserError(
            f"examples of {self.name} can't be read from {path}. Use `fedcollm run`, which needs no files of examples."
        )


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over labelled rows, or zero with a zero gradient if there are none.

    Args:
        logits: [P, V].
        targets: [P] int64; rows with the target `UNLABELLED` don't count.
    """
    labelled = (targets != UNLABELLED).sum().clamp(min=1)
    return functional.cross_entropy(logits, targets, ignore_index=UNLABELLED, reduction="sum") / labelled


def outputs(modality: Modality, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Return the logits of a model on a batch and their supervised loss, checked.

    Raises:
        UserError: a modality of one's own returns something else than logits [P, V] and a scalar.
    """
    logits = modality.logits(model, batch)
    if not (isinstance(logits, Tensor) and logits.dim() == 2 and logits.is_floating_point()):  # pyright: ignore
        raise UserError(
            f"{type(modality).__name__}.logits returned {_described(logits)}. Return a float tensor [P, V], with one "
            "row for each supervised position."
        )
    loss = modality.loss(logits, batch)
    if not (isinstance(loss, Tensor) and loss.dim() == 0 and loss.is_floating_point()):  # pyright: ignore
        raise UserError(f"{type(modality).__name__}.loss returned {_described(loss)}. Return a scalar float tensor.")
    return logits, loss


def matched(modality: Modality, batch: Any, slm_logits: Tensor, llm_logits: Tensor) -> Rows:
    """Return both models' outputs matched row by row, checked.

    Raises:
        UserError: a modality of one's own returns rows of different shapes.
    """
    rows = modality.align(batch, slm_logits, llm_logits)
    if rows.slm.shape != rows.llm.shape:
        raise UserError(
            f"{type(modality).__name__}: the SLM's rows are {list(rows.slm.shape)} and the LLM's "
            f"{list(rows.llm.shape)}. Both models must have the same rows and columns: let `logits` return them so, or "
            "match them in `align`."
        )
    return rows


def _answer(score: Score, id: str) -> Answer:
    """Return the answer that the score of one example tells; it is right if it is the true label."""
    for truth, said in score.confusion:
        return Answer(said, said == truth)
    outcome = score.outcomes.get(id)
    return Answer(right=None if outcome is None else outcome >= 1)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)} and dtype {value.dtype}"
    return f"a {type(value).__name__}"
