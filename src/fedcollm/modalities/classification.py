"""What the classification of images and that of audio have in common: one row of logits per example."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.messages import Score
from fedcollm.modalities.base import Modality
from fedcollm.modalities.evidence import head_inputs, normalized
from fedcollm.modalities.predictions import Prediction, likeliest
from fedcollm.models.adapters import without_adapter

#: Examples per forward pass of `last_hidden`.
_AT_ONCE = 64


class ClassificationTask(Modality):
    """A modality whose batches have `targets`, [B] int64, and whose logits are [B, classes].

    Attributes:
        classes: names of the classes, in the order of the columns of the logits.
    """

    classes: tuple[str, ...]

    def with_columns(self, network: nn.Module, section: ModelConfig, role: str) -> nn.Module:
        """Return a network as it is, if it has one column per class.

        Raises:
            UserError: it has a different number of classes.
        """
        columns = cast(Any, network).config.num_labels
        if columns != len(self.classes):
            raise UserError(
                f"{role}.source {section.source!r} has {columns} classes, but {self.name} has {len(self.classes)}. "
                f"Choose a model with {len(self.classes)} classes."
            )
        return network

    def targets(self, batch: Any) -> Tensor:
        """Return [B] int64, the class of each example or `UNLABELLED`."""
        return batch.targets

    def probabilities(self, model: nn.Module, examples: Sequence[Any]) -> list[Tensor]:
        """Return [classes] probabilities of the classes of each example."""
        return list(self.logits(model, self.collate(examples)).softmax(-1).cpu())

    def predict(self, model: nn.Module, examples: Sequence[Any]) -> list[Prediction]:
        """Return the likeliest class of each example, and the probabilities of all."""
        return [likeliest(self.classes, values) for values in self.probabilities(model, examples)]

    def score(self, model: nn.Module, examples: Sequence[Any]) -> Score:
        """Return the accuracy of the most likely class."""
        batch = self.collate(examples)
        predicted = self.logits(model, batch).argmax(-1).cpu()
        pairs: list[tuple[int, int]] = cast(Any, torch.stack([self.targets(batch), predicted], dim=1)).tolist()
        correct = [target == found for target, found in pairs]
        outcomes = {example.id: float(right) for example, right in zip(examples, correct, strict=True)}
        confusion = Counter((self.classes[target], self.classes[found]) for target, found in pairs)
        return Score({"acc": float(sum(correct))}, len(examples), confusion, outcomes)


def last_hidden(
    task: ClassificationTask, examples: Sequence[Any], model: nn.Module | None, heads: Sequence[str], advice: str
) -> Tensor:
    """Return [R, d], what a classifier's last layer reads of each example, without an adapter.

    Args:
        task: makes batches and logits.
        examples: the examples.
        model: the classifier.
        heads: the names that its last layer may have.
        advice: what the classifier lacks if there is no such layer, and what to set instead, for the message.

    Raises:
        UserError: it has no layer of such a name.
    """
    head = next((getattr(model, name) for name in heads if hasattr(model, name)), None)
    if model is None or not isinstance(head, nn.Module):
        raise UserError(f"control.features slm: {advice}")
    batches = [examples[i : i + _AT_ONCE] for i in range(0, len(examples), _AT_ONCE)]
    with without_adapter(model):
        parts = [head_inputs(head, partial(task.logits, model, task.collate(batch))) for batch in batches]
    return normalized(torch.cat(parts))
