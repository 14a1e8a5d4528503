"""Images as the rows of a regression: their pixels, or what a classifier's last layer reads."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedcollm.config import StatisticsConfig
from fedcollm.errors import UserError
from fedcollm.modalities.evidence import Evidence, head_inputs, joined, normalized, with_labels
from fedcollm.models.adapters import without_adapter

if TYPE_CHECKING:
    from fedcollm.modalities.vision.task import ImageExample, ImageTask

#: Names of a classifier's last layer; a distilled DeiT has two, of which the first reads the class token.
_HEADS = ("classifier", "cls_classifier")

#: Images per forward pass.
_IMAGES_AT_ONCE = 64


def image_evidence(
    task: "ImageTask", examples: Sequence["ImageExample"], features: StatisticsConfig, model: nn.Module | None
) -> Evidence:
    """Return one row per image and one target per class.

    Args:
        task: the task, which has the classes.
        examples: the images.
        features: the kind of features.
        model: the image classifier, for the features `slm`.

    Raises:
        UserError: the classifier has no last layer that we know.
    """
    rows = _FEATURES[features.features](task, examples, model)
    return with_labels(rows, task.classes, [example.target for example in examples])


def _ones(task: "ImageTask", examples: Sequence["ImageExample"], model: nn.Module | None) -> Tensor:
    return torch.ones(len(examples), 1)


def _pixels(task: "ImageTask", examples: Sequence["ImageExample"], model: nn.Module | None) -> Tensor:
    return normalized(torch.stack([task.control_pixels(example) for example in examples]))


def _hidden(task: "ImageTask", examples: Sequence["ImageExample"], model: nn.Module | None) -> Tensor:
    """Return [R, d], what the classifier's last layer reads."""
    head = next((getattr(model, name) for name in _HEADS if hasattr(model, name)), None)
    if model is None or not isinstance(head, nn.Module):
        raise UserError(
            "control.features slm: the image classifier has no layer named classifier. Set control.features: ngrams, "
            "which takes the pixels."
        )
    batches = [examples[i : i + _IMAGES_AT_ONCE] for i in range(0, len(examples), _IMAGES_AT_ONCE)]
    with without_adapter(model):
        parts = [head_inputs(head, partial(task.logits, model, task.collate(batch))) for batch in batches]
    return normalized(torch.cat(parts))


def _both(task: "ImageTask", examples: Sequence["ImageExample"], model: nn.Module | None) -> Tensor:
    return joined(_pixels(task, examples, model), _hidden(task, examples, model))


_FEATURES: Mapping[str, Callable[["ImageTask", Sequence["ImageExample"], nn.Module | None], Tensor]] = {
    "constant": _ones,
    "ngrams": _pixels,
    "slm": _hidden,
    "ngrams_slm": _both,
}
