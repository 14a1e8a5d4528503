"""What a trained model predicts of an example: an answer, how likely each possible one is, or what it detects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor


@dataclass(frozen=True)
class Found:
    """An object that a detector found in an image.

    Attributes:
        label: name of its class.
        confidence: how sure the detector is, from 0 to 1.
        left: left edge of its box, in pixels.
        top: upper edge.
        right: right edge.
        bottom: lower edge.
    """

    label: str
    confidence: float
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Prediction:
    """What a model predicts of an example.

    Attributes:
        text: the answer: a choice, a class, a generated text or a transcript; of a detector, what it found in words.
        probabilities: possible answer to its probability, in the order of the choices; empty if answers are free.
        objects: what a detector found, the surest first; None if the model is no detector.
    """

    text: str
    probabilities: Mapping[str, float] = field(default_factory=dict[str, float])
    objects: tuple[Found, ...] | None = None


def likeliest(names: Sequence[str], probabilities: Tensor, chosen: int | None = None) -> Prediction:
    """Return the prediction of one of several possible answers.

    >>> import torch
    >>> likeliest(["red", "blue"], torch.tensor([0.25, 0.75]))
    Prediction(text='blue', probabilities={'red': 0.25, 'blue': 0.75}, objects=None)

    Args:
        names: C possible answers.
        probabilities: [C], their probabilities.
        chosen: index of the answer; by default that of the likeliest one, and of the first among equals.
    """
    values: list[float] = cast(Any, probabilities).tolist()
    index = int(probabilities.argmax()) if chosen is None else chosen
    return Prediction(names[index], dict(zip(names, values, strict=True)))
