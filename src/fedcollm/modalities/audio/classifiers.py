"""Pretrained audio classifiers of transformers, with a head that has the task's classes; see `Classifiers`.

The small ones with random weights that ship with fedcollm are given as many classes as the task has.
"""

from typing import Any, ClassVar, cast

import torch
from torch import nn

from fedcollm.config import ModelConfig
from fedcollm.modalities.audio.models import (
    AUDIO_MODELS,
    AudioModels,
    audio_config,
    layers_to_adapt,
    without_random_masks,
)
from fedcollm.modalities.classifiers import Classifiers, refuse_cut
from fedcollm.models.adapters import resolve_dtype
from fedcollm.models.pretrained import transformers_class


class AudioClassifiers(Classifiers):
    """The part of the modality of audio files with classes that deals with models.

    Args:
        classes: names of the task's classes.
    """

    loader: ClassVar[str] = "AutoModelForAudioClassification"
    architectures: ClassVar[tuple[str, ...]] = ("ForAudioClassification", "ForSequenceClassification")
    heads: ClassVar[tuple[str, ...]] = ("classifier",)
    inner: ClassVar[tuple[str, ...]] = ("projector",)
    what: ClassVar[str] = "audio classifier"
    advice: ClassVar[str] = (
        "Give a directory or a hub id of an audio classifier that this version of transformers can load, or one of "
        f"{', '.join(AUDIO_MODELS)}."
    )
    others: ClassVar[str] = "AST, wav2vec2, HuBERT or Whisper"

    def load_model(self, section: ModelConfig, role: str, device: torch.device, seed: int) -> nn.Module:
        """Return an audio classifier with one column per class; see `Classifiers.load_model`.

        Raises:
            UserError: the source can't be loaded, is no classifier, or lacks weights other than those of a head.
        """
        if section.source not in AUDIO_MODELS:
            return without_random_masks(super().load_model(section, role, device, seed))
        refuse_cut(section, self.what, f"{role}.")
        cast(Any, torch).manual_seed(seed)
        network = cast(nn.Module, transformers_class("ASTForAudioClassification")(self.load_shape(section)))
        return network.to(resolve_dtype(section.dtype, device)).to(device)

    def load_shape(self, section: ModelConfig) -> Any:
        """Return the configuration of a classifier.

        Raises:
            UserError: the source can't be read.
        """
        if section.source not in AUDIO_MODELS:
            return super().load_shape(section)
        shape = audio_config(section.source)
        shape.num_labels, shape.architectures = len(self.classes), ["ASTForAudioClassification"]
        return shape

    def place(self, section: ModelConfig) -> str:
        """Return the directory or hub id of a source, or the name of a shipped model.

        Raises:
            UserError: it is none of these.
        """
        return section.source if section.source in AUDIO_MODELS else super().place(section)

    def is_pretrained(self, section: ModelConfig) -> bool:
        """Return False if weights depend on the run's seed: those of a fresh head, or of a shipped model."""
        return section.source not in AUDIO_MODELS and super().is_pretrained(section)

    def adapted_layers(self, network: nn.Module) -> list[str]:
        """Return the names of all linear layers except the head, what is trained as a whole, and wav2vec2's input."""
        return layers_to_adapt(network, {*self.head_names(network), *self.trained_modules(network)})

    def footprint(self, example: Any, shape: Any, scoring: bool = False) -> tuple[int, int]:
        """Return estimates of a clip's number of patches or frames, and its single row; see `AudioModels`."""
        return AudioModels().footprint(example, shape, scoring)
