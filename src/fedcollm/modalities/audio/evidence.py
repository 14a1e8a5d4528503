"""Clips as the rows of a regression: how loud each band is, or what a classifier's last layer reads."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedcollm.config import StatisticsConfig
from fedcollm.modalities.audio.features import LogMel
from fedcollm.modalities.classification import last_hidden
from fedcollm.modalities.evidence import Evidence, joined, normalized, with_labels

if TYPE_CHECKING:
    from fedcollm.modalities.audio.classification import AudioExample, AudioTask

#: Mel bands, and equal parts in time, of the features without a model.
_BANDS, _PARTS = 32, 8

#: What is said of a classifier without such a last layer.
_ADVICE = (
    "the audio classifier has no layer named classifier. Set control.features: ngrams, "
    "which takes the loudness of mel bands."
)


def audio_evidence(
    task: "AudioTask", examples: Sequence["AudioExample"], features: StatisticsConfig, model: nn.Module | None
) -> Evidence:
    """Return one row per clip and one target per class.

    Args:
        task: the task, which has the classes.
        examples: the clips.
        features: the kind of features.
        model: the audio classifier, for the features `slm`.

    Raises:
        UserError: the classifier has no last layer that we know.
    """
    rows = _FEATURES[features.features](task, examples, model)
    answers = [None if example.label is None else task.target(example) for example in examples]
    return with_labels(rows, task.classes, answers)


def loudness(clips: Sequence[Tensor]) -> Tensor:
    """Return the mean log-mel bands in each of eight equal parts of clips: [B, 256], each row with a mean of 0.

    Args:
        clips: [T_i] samples at 16 kHz.
    """
    rows: list[Tensor] = []
    for clip in clips:
        frames = max(len(clip) // 160, _PARTS)
        bands = LogMel(_BANDS, frames).powers([clip])[0]  # [frames, bands]
        parts = torch.stack([part.mean(0) for part in bands.tensor_split(_PARTS)])
        rows.append((parts - parts.mean()).flatten())
    return torch.stack(rows)


def _ones(task: "AudioTask", examples: Sequence["AudioExample"], model: nn.Module | None) -> Tensor:
    return torch.ones(len(examples), 1)


def _loudness(task: "AudioTask", examples: Sequence["AudioExample"], model: nn.Module | None) -> Tensor:
    return normalized(loudness(task.collate(examples).clips))


def _hidden(task: "AudioTask", examples: Sequence["AudioExample"], model: nn.Module | None) -> Tensor:
    """Return [R, d], what the classifier's last layer reads."""
    return last_hidden(task, examples, model, ("classifier",), _ADVICE)


def _both(task: "AudioTask", examples: Sequence["AudioExample"], model: nn.Module | None) -> Tensor:
    return joined(_loudness(task, examples, model), _hidden(task, examples, model))


_FEATURES: Mapping[str, Callable[["AudioTask", Sequence["AudioExample"], nn.Module | None], Tensor]] = {
    "constant": _ones,
    "ngrams": _loudness,
    "slm": _hidden,
    "ngrams_slm": _both,
}
