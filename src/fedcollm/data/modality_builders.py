"""The table of modalities that ship with fedcollm, and the functions that build from its entries.

To add a modality, add an entry to `MODALITIES`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from fedcollm.config import ModelConfig, TaskConfig
from fedcollm.data import detection_tasks
from fedcollm.data.audio_files import find_sounds
from fedcollm.data.image_files import find_classes
from fedcollm.data.own_files import own_files
from fedcollm.data.sources.digits import CLASSES
from fedcollm.data.sources.spoken_words import WORDS
from fedcollm.modalities.audio.classification import AudioTask
from fedcollm.modalities.audio.classifiers import AudioClassifiers
from fedcollm.modalities.audio.files import AudioFileTask, audio_task_for_client
from fedcollm.modalities.audio.models import AudioModels, features_of
from fedcollm.modalities.audio.recognizers import build_recognizer, build_recognizer_for_client
from fedcollm.modalities.audio.speech_models import SpeechModels
from fedcollm.modalities.base import Modality
from fedcollm.modalities.facts import class_names, whole_number
from fedcollm.modalities.text.cross_tokenizer import TokenizerBridge
from fedcollm.modalities.text.models import TextModelFacts, TextModels, client_facts, pair_facts
from fedcollm.modalities.text.style import style_of
from fedcollm.modalities.text.task import TextTask
from fedcollm.modalities.vision.classifiers import ClassifierModels
from fedcollm.modalities.vision.files import ImageFileTask, ImagePair
from fedcollm.modalities.vision.models import ImageModels
from fedcollm.modalities.vision.preprocessing import load_preprocessor
from fedcollm.modalities.vision.task import ImageTask


class BaseModels(Protocol):
    """The part of a modality that deals with its base models. It needs neither data nor a tokenizer.

    Every `Modality` has these methods; see there for their arguments.
    """

    causal_lm: ClassVar[bool]

    def load_model(self, section: ModelConfig, role: str, device: torch.device, seed: int) -> nn.Module:
        """Return the base network of a role."""
        ...

    def prepare(self, section: ModelConfig) -> None:
        """Convert and cut the base network of a role once, before several processes need it."""
        ...

    def outline(self, section: ModelConfig) -> nn.Module:
        """Return the same network without weights."""
        ...

    def trained_modules(self, network: nn.Module) -> Sequence[str]:
        """Return the names of modules that are trained as a whole beside the adapter."""
        ...

    def adapted_layers(self, network: nn.Module) -> Sequence[str] | None:
        """Return the names of the layers that `adapter.targets: auto` stands for; None for all linear layers."""
        ...

    def footprint(self, example: Any, shape: Any, scoring: bool = False) -> tuple[int, int]:
        """Return estimates of the number of positions and of output rows of an example."""
        ...


_ForClient = Callable[[TaskConfig, ModelConfig, Mapping[str, Any]], Modality]


@dataclass(frozen=True)
class ModalityEntry:
    """A modality that ships with fedcollm.

    Attributes:
        models: returns the part that deals with base models, given the section `task`, without loading a model.
        build: returns the modality of a pair of models, given the section `task`, the sections `slm` and `llm`, and
            whether their tokenizers may differ.
        build_for_client: returns the modality of a client, given the section `task`, the section `slm` and the
            server's `Modality.facts`.
    """

    models: Callable[[TaskConfig], BaseModels]
    build: Callable[[TaskConfig, ModelConfig, ModelConfig, bool], Modality]
    build_for_client: _ForClient


def _text_task(config: TaskConfig, facts: TextModelFacts) -> TextTask:
    sizes = facts.vocabulary_size, facts.context_length
    task = TextTask(config.name, facts.tokenizer, *sizes, start=facts.start, style=style_of(config))
    if config.no_choices:
        task.metric = "exact match"
    return task


def _build_text(config: TaskConfig, slm: ModelConfig, llm: ModelConfig, across_tokenizers: bool) -> Modality:
    facts = pair_facts(slm, llm, across_tokenizers)
    task = _text_task(config, facts.slm)
    return task if facts.llm is facts.slm else TokenizerBridge(task, _text_task(config, facts.llm))


def _build_text_for_client(config: TaskConfig, slm: ModelConfig, facts: Mapping[str, Any]) -> Modality:
    context = whole_number(config.name, facts, "context_length", 1, 2**63 - 1)
    size = whole_number(config.name, facts, "vocabulary_size", 1, 2**31 - 1)
    return _text_task(config, client_facts(slm, size, context))


def _build_pixels(config: TaskConfig, slm: ModelConfig, llm: ModelConfig, across_tokenizers: bool) -> Modality:
    return ImageTask(config.name, CLASSES)


def _build_pixels_for_client(config: TaskConfig, slm: ModelConfig, facts: Mapping[str, Any]) -> Modality:
    return ImageTask(config.name, CLASSES)


def _build_images(config: TaskConfig, slm: ModelConfig, llm: ModelConfig, across_tokenizers: bool) -> Modality:
    classes = find_classes(*own_files(config))
    own, other = load_preprocessor(slm), load_preprocessor(llm)
    task = ImageFileTask(config.name, classes, own)
    if own.to_wire() == other.to_wire():
        return task
    return ImagePair(task, ImageFileTask(config.name, classes, other))


def _build_images_for_client(config: TaskConfig, slm: ModelConfig, facts: Mapping[str, Any]) -> Modality:
    return ImageFileTask(config.name, class_names(config.name, facts), load_preprocessor(slm))


def _build_audio(config: TaskConfig, slm: ModelConfig, llm: ModelConfig, across_tokenizers: bool) -> Modality:
    return AudioTask(config.name, WORDS, features_of(slm.source), features_of(llm.source))


def _build_audio_for_client(config: TaskConfig, slm: ModelConfig, facts: Mapping[str, Any]) -> Modality:
    return AudioTask(config.name, WORDS, features_of(slm.source))


def _by_name(build: Callable[[str, ModelConfig, Mapping[str, Any]], Modality]) -> _ForClient:
    """Return a builder that takes only the task's name as one that takes the section `task`."""
    return lambda task, slm, facts: build(task.name, slm, facts)


def _build_sounds(config: TaskConfig, slm: ModelConfig, llm: ModelConfig, across_tokenizers: bool) -> Modality:
    path, form = own_files(config)
    return AudioFileTask(config.name, find_sounds(path, form), slm, llm, form.longest_seconds)


def _build_speech(config: TaskConfig, slm: ModelConfig, llm: ModelConfig, across_tokenizers: bool) -> Modality:
    form = own_files(config)[1]
    return build_recognizer(config.name, slm, llm, form.longest_seconds, form.language)


#: Name of a modality to its entry. The format of the task `custom` says of which one it is.
MODALITIES: Mapping[str, ModalityEntry] = {
    "text": ModalityEntry(lambda task: TextModels(), _build_text, _build_text_for_client),
    "image": ModalityEntry(lambda task: ImageModels(), _build_pixels, _build_pixels_for_client),
    "image_files": ModalityEntry(
        lambda task: ClassifierModels(find_classes(*own_files(task))), _build_images, _build_images_for_client
    ),
    "shapes": ModalityEntry(
        detection_tasks.models_of_shapes, detection_tasks.build_shapes, _by_name(detection_tasks.build_for_client)
    ),
    "object_files": ModalityEntry(
        lambda task: detection_tasks.models_of_own(*own_files(task)),
        lambda task, slm, llm, _: detection_tasks.build_own(task.name, *own_files(task), slm, llm),
        _by_name(detection_tasks.build_for_client),
    ),
    "audio": ModalityEntry(lambda task: AudioModels(), _build_audio, _build_audio_for_client),
    "audio_files": ModalityEntry(
        lambda task: AudioClassifiers(find_sounds(*own_files(task))), _build_sounds, _by_name(audio_task_for_client)
    ),
    "speech_files": ModalityEntry(
        lambda task: SpeechModels(own_files(task)[1].longest_seconds),
        _build_speech,
        _by_name(build_recognizer_for_client),
    ),
}
