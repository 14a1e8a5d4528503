"""Images as the rows of a regression: their pixels, or what a classifier's last layer reads."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedcollm.config import StatisticsConfig
from fedcollm.modalities.classification import last_hidden
from fedcollm.modalities.evidence import Evidence, joined, normalized, with_labels

if TYPE_CHECKING:
    from fedcollm.modalities.vision.task import ImageExample, ImageTask

#: Names of a classifier's last layer; a distilled DeiT has two, of which the first reads the class token.
_HEADS = ("classifier", "cls_classifier")

#: What is said of a classifier without such a last layer.
_ADVICE = "the image classifier has no layer named classifier. Set control.features: ngrams, which takes the pixels."


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
    return last_hidden(task, examples, model, _HEADS, _ADVICE)


def _both(task: "ImageTask", examples: Sequence["ImageExample"], model: nn.Module | None) -> Tensor:
    return joined(_pixels(task, examples, model), _hidden(task, examples, model))


_FEATURES: Mapping[str, Callable[["ImageTask", Sequence["ImageExample"], nn.Module | None], Tensor]] = {
    "constant": _ones,
    "ngrams": _pixels,
    "slm": _hidden,
    "ngrams_slm": _both,
}
