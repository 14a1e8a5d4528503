"""The tables of tasks and modalities that ship with fedcollm, and the functions that build from their entries.

To add a task, add an entry to `TASKS`. To add a modality, add an entry to `MODALITIES`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import nn

from fedcollm.config import FormatConfig, ModelConfig, TaskConfig
from fedcollm.data import detection_tasks
from fedcollm.data.audio_files import find_sounds, load_sounds, load_speech
from fedcollm.data.files import load_custom
from fedcollm.data.image_files import find_classes, load_images
from fedcollm.data.pool import Pool
from fedcollm.data.sources.digits import CLASSES, load_digit_images
from fedcollm.data.sources.icd10 import CHAPTERS, load_icd10
from fedcollm.data.sources.professions import load_professions
from fedcollm.data.sources.qa import load_qa
from fedcollm.data.sources.spoken_words import WORDS, load_spoken_words
from fedcollm.errors import UserError
from fedcollm.modalities.audio.classification import AudioTask
from fedcollm.modalities.audio.classifiers import AudioClassifiers
from fedcollm.modalities.audio.files import AudioFileTask, audio_task_for_client
from fedcollm.modalities.audio.models import AudioModels, features_of
from fedcollm.modalities.audio.recognizers import build_recognizer, build_recognizer_for_client
from fedcollm.modalities.audio.speech_models import SpeechModels
from fedcollm.modalities.base import Modality
from fedcollm.modalities.text.cross_tokenizer import TokenizerBridge
from fedcollm.modalities.text.models import TextModelFacts, TextModels, client_facts, pair_facts
from fedcollm.modalities.text.task import TextTask
from fedcollm.modalities.vision.classifiers import ClassifierModels
from fedcollm.modalities.vision.detection import DetectionTask
from fedcollm.modalities.vision.files import ImageFileTask, ImagePair
from fedcollm.modalities.vision.models import ImageModels
from fedcollm.modalities.vision.preprocessing import load_preprocessor
from fedcollm.modalities.vision.task import ImageTask


@dataclass(frozen=True)
class TaskEntry:
    """A task that ships with fedcollm.

    Attributes:
        load: returns the examples, given the section `task` and the run's seed.
        modality: a key of `MODALITIES`.
        comment: what the task is, in one line.
    """

    load: Callable[[TaskConfig, int], Pool]
    modality: str
    comment: str


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


@dataclass(frozen=True)
class ModalityEntry:
    """A modality that ships with fedcollm.

    Attributes:
        models: returns the part that deals with base models, given the section `task`, without loading a model.
        build: returns the modality of a pair of models, given the section `task`, the sections `slm` and `llm`, and
            whether their tokenizers may differ.
        build_for_client: returns the modality of a client, given the task's name, the section `slm` and the server's
            `Modality.facts`.
    """

    models: Callable[[TaskConfig], BaseModels]
    build: Callable[[TaskConfig, ModelConfig, ModelConfig, bool], Modality]
    build_for_client: Callable[[str, ModelConfig, Mapping[str, Any]], Modality]


def _load_icd10(config: TaskConfig, seed: int) -> Pool:
    needed = config.clients * config.private_size + config.public_size + config.unlabelled_size + config.test_size
    return load_icd10(math.ceil(needed / len(CHAPTERS)), seed)


def _load_questions(config: TaskConfig, seed: int) -> Pool:
    return load_qa(config.name, config.path)


def _load_professions(config: TaskConfig, seed: int) -> Pool:
    return load_professions(config.path)


def _load_digits(config: TaskConfig, seed: int) -> Pool:
    return load_digit_images()


def _load_spoken_words(config: TaskConfig, seed: int) -> Pool:
    return load_spoken_words()


def _load_own_images(path: Path, format: FormatConfig) -> Pool:
    return load_images(path, format, find_classes(path, format))


def _load_own_sounds(path: Path, format: FormatConfig) -> Pool:
    return load_sounds(path, format, find_sounds(path, format))


#: Kind of the user's own files (`FormatConfig.kind`, which is also a key of `MODALITIES`) to what loads them.
_OWN_FILES: Mapping[str, Callable[[Path, FormatConfig], Pool]] = {
    "text": load_custom,
    "image_files": _load_own_images,
    "audio_files": _load_own_sounds,
    "speech_files": load_speech,
    "object_files": detection_tasks.load_own,
}


def _load_own_files(config: TaskConfig, seed: int) -> Pool:
    path, format = _own_files(config)
    return _OWN_FILES[format.kind](path, format)


def _own_files(config: TaskConfig) -> tuple[Path, FormatConfig]:
    if config.path is None or config.format is None:
        raise UserError(
            "task.name: custom needs your files. Set task.path (a file or directory) and task.format (prompt, answer, "
            "choices; for images, image and answer; for detection, boxes; for audio, audio and answer or transcript)."
        )
    return config.path, config.format


#: Name of a task to its entry.
TASKS: Mapping[str, TaskEntry] = {
    "icd10": TaskEntry(_load_icd10, "text", "the ICD-10-CM chapter of a diagnosis (comes with the installation)"),
    "arc_easy": TaskEntry(_load_questions, "text", "the easier science questions of ARC"),
    "arc_challenge": TaskEntry(_load_questions, "text", "the harder science questions of ARC"),
    "openbookqa": TaskEntry(_load_questions, "text", "questions that need a fact of elementary science"),
    "commonsense_qa": TaskEntry(_load_questions, "text", "questions that need common sense"),
    "professions": TaskEntry(_load_professions, "text", "a hospital, a bank and a court, each with subjects of MMLU"),
    "digits": TaskEntry(_load_digits, "image", "scanned digits of 8 x 8 pixels (comes with scikit-learn)"),
    "spoken_words": TaskEntry(_load_spoken_words, "audio", "twenty spoken words, a client per accent (by espeak-ng)"),
    "shapes": TaskEntry(
        detection_tasks.load_drawn, "shapes", "boxes of five shapes in drawn scenes, a client per style"
    ),
    "custom": TaskEntry(
        _load_own_files, "text", "your own files of text, images or audio, with answers, classes or transcripts"
    ),
}


def _text_task(name: str, facts: TextModelFacts) -> TextTask:
    return TextTask(name, facts.tokenizer, facts.vocabulary_size, facts.context_length, start=facts.start)


def _build_text(config: TaskConfig, slm: ModelConfig, llm: ModelConfig, across_tokenizers: bool) -> Modality:
    facts = pair_facts(slm, llm, across_tokenizers)
    task = _text_task(config.name, facts.slm)
    return task if facts.llm is facts.slm else TokenizerBridge(task, _text_task(config.name, facts.llm))


def _build_text_for_client(name: str, slm: ModelConfig, facts: Mapping[str, Any]) -> Modality:
    if missing := sorted({"vocabulary_size", "context_length"} - facts.keys()):
        raise UserError(f"task {name}: the server's facts lack {missing[0]}. Get a fresh copy of them from the server.")
    return _text_task(name, client_facts(slm, facts["vocabulary_size"], facts["context_length"]))


def _build_pixels(config: TaskConfig, slm: ModelConfig, llm: ModelConfig, across_tokenizers: bool) -> Modality:
    return ImageTask(config.name, CLASSES)


def _build_pixels_for_client(name: str, slm: ModelConfig, facts: Mapping[str, Any]) -> Modality:
    return ImageTask(name, CLASSES)


def _build_images(config: TaskConfig, slm: ModelConfig, llm: ModelConfig, across_tokenizers: bool) -> Modality:
    classes = find_classes(*_own_files(config))
    own, other = load_preprocessor(slm), load_preprocessor(llm)
    task = ImageFileTask(config.name, classes, own)
    if own.to_wire() == other.to_wire():
        return task
    return ImagePair(task, ImageFileTask(config.name, classes, other))


def _build_images_for_client(name: str, slm: ModelConfig, facts: Mapping[str, Any]) -> Modality:
    classes = facts.get("classes")
    if not isinstance(classes, list) or len(cast("list[Any]", classes)) < 2:
        raise UserError(f"task {name}: the server's facts lack classes. Get a fresh copy of them from the server.")
    return ImageFileTask(name, cast("list[str]", classes), load_preprocessor(slm))


def _build_audio(config: TaskConfig, slm: ModelConfig, llm: ModelConfig, across_tokenizers: bool) -> Modality:
    return AudioTask(config.name, WORDS, features_of(slm.source), features_of(llm.source))


def _build_audio_for_client(name: str, slm: ModelConfig, facts: Mapping[str, Any]) -> Modality:
    return AudioTask(name, WORDS, features_of(slm.source))


def _build_sounds(config: TaskConfig, slm: ModelConfig, llm: ModelConfig, across_tokenizers: bool) -> Modality:
    path, form = _own_files(config)
    return AudioFileTask(config.name, find_sounds(path, form), slm, llm, form.longest_seconds)


def _build_speech(config: TaskConfig, slm: ModelConfig, llm: ModelConfig, across_tokenizers: bool) -> Modality:
    form = _own_files(config)[1]
    return build_recognizer(config.name, slm, llm, form.longest_seconds, form.language)


#: Name of a modality to its entry. The format of the task `custom` says of which one it is.
MODALITIES: Mapping[str, ModalityEntry] = {
    "text": ModalityEntry(lambda task: TextModels(), _build_text, _build_text_for_client),
    "image": ModalityEntry(lambda task: ImageModels(), _build_pixels, _build_pixels_for_client),
    "image_files": ModalityEntry(
        lambda task: ClassifierModels(find_classes(*_own_files(task))), _build_images, _build_images_for_client
    ),
    "shapes": ModalityEntry(
        detection_tasks.models_of_shapes, detection_tasks.build_shapes, detection_tasks.build_for_client
    ),
    "object_files": ModalityEntry(
        lambda task: detection_tasks.models_of_own(*_own_files(task)),
        lambda task, slm, llm, _: detection_tasks.build_own(task.name, *_own_files(task), slm, llm),
        detection_tasks.build_for_client,
    ),
    "audio": ModalityEntry(lambda task: AudioModels(), _build_audio, _build_audio_for_client),
    "audio_files": ModalityEntry(
        lambda task: AudioClassifiers(find_sounds(*_own_files(task))), _build_sounds, audio_task_for_client
    ),
    "speech_files": ModalityEntry(
        lambda task: SpeechModels(_own_files(task)[1].longest_seconds), _build_speech, build_recognizer_for_client
    ),
}


def load_pool(config: TaskConfig, seed: int) -> Pool:
    """Return the examples of a task, before they are split.

    Args:
        config: the section that names the task and its files, if any.
        seed: the run's seed.

    Raises:
        UserError: the task is unknown, or its data is missing or invalid.
    """
    return _entry(config).load(config, seed)


def build_modality(task: TaskConfig, slm: ModelConfig, llm: ModelConfig, across_tokenizers: bool) -> Modality:
    """Return the modality of a task for a pair of models, without loading their weights.

    Args:
        task: the section that names the task.
        slm: the section of the SLM.
        llm: the section of the LLM.
        across_tokenizers: whether the two models may have different tokenizers.

    Raises:
        UserError: the task is unknown, a model can't be read, or the tokenizers differ.
    """
    return _modality(task).build(task, slm, llm, across_tokenizers)


def build_client_modality(task: TaskConfig, slm: ModelConfig, facts: Mapping[str, Any]) -> Modality:
    """Return the modality of a deployed client, which has only the SLM.

    Args:
        task: the section that names the task.
        slm: the section of the SLM.
        facts: `build_modality(...).of("slm").facts()`, as the server computed it.

    Raises:
        UserError: the task is unknown, the SLM can't be read, or facts are missing.
    """
    return _modality(task).build_for_client(task.name, slm, facts)


def base_models(task: TaskConfig) -> BaseModels:
    """Return the part of a task's modality that deals with base models, without loading a model.

    Raises:
        UserError: the task is unknown, or its own images have no classes.
    """
    return _modality(task).models(task)


def load_private(format: FormatConfig, path: Path, modality: Modality) -> Pool:
    """Return the examples of one client from files in the user's own format.

    Args:
        format: which columns are the prompt or image and the answer. All rows are this client's.
        path: the client's file or directory.
        modality: the client's modality, which knows the classes of images.

    Raises:
        UserError: a file, a row or the format is invalid.
    """
    own = format.model_copy(update={"group": None})
    if isinstance(modality, DetectionTask):
        return detection_tasks.load_objects(path, own, modality.classes)
    if isinstance(modality, ImageFileTask):
        return load_images(path, own, modality.classes, several_classes=False)
    if isinstance(modality, AudioFileTask):
        return load_sounds(path, own, modality.classes, several_classes=False)
    if own.kind == "speech_files":
        return load_speech(path, own)
    return load_custom(path, own, several_classes=False)


def _modality(task: TaskConfig) -> ModalityEntry:
    entry = _entry(task)
    if task.format is not None and entry.load is _load_own_files:
        return MODALITIES[task.format.kind]
    return MODALITIES[entry.modality]


def _entry(task: TaskConfig) -> TaskEntry:
    if task.name not in TASKS:
        raise UserError(f"task.name: unknown task {task.name!r}. Choose one of {', '.join(TASKS)}.")
    return TASKS[task.name]
