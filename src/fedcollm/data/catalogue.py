"""The table of tasks that ship with fedcollm, and what a run needs of a task: examples, modality, base models.

To add a task, add an entry to `TASKS`. To add a modality, add an entry to `MODALITIES`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcollm.config import FormatConfig, ModelConfig, TaskConfig
from fedcollm.config.data import OWN
from fedcollm.data import detection_tasks
from fedcollm.data.modality_builders import MODALITIES, BaseModels, ModalityEntry
from fedcollm.data.own_files import OWN_FILES, own_files
from fedcollm.data.pool import Pool
from fedcollm.data.sources.digits import load_digit_images
from fedcollm.data.sources.icd10 import CHAPTERS, load_icd10
from fedcollm.data.sources.professions import ABOUT, load_professions
from fedcollm.data.sources.qa import load_qa
from fedcollm.data.sources.spoken_words import load_spoken_words
from fedcollm.errors import UserError
from fedcollm.modalities.base import Modality


@dataclass(frozen=True)
class TaskEntry:
    """A task that ships with fedcollm.

    Attributes:
        load: returns the examples, given the section `task` and the run's seed.
        modality: a key of `MODALITIES`.
        comment: what the task is, in one line.
        asked: the columns of a table with which a trained model is asked, as a format of the same columns; the answer
            need not be there. None for the user's own files, whose format says it.
    """

    load: Callable[[TaskConfig, int], Pool]
    modality: str
    comment: str
    asked: FormatConfig | None = None


def _load_icd10(config: TaskConfig, seed: int) -> Pool:
    needed = (
        (config.clients or 1) * config.private_size + config.public_size + config.unlabelled_size + config.test_size
    )
    return load_icd10(math.ceil(needed / len(CHAPTERS)), seed)


def _load_questions(config: TaskConfig, seed: int) -> Pool:
    return load_qa(config.name, config.path)


def _load_professions(config: TaskConfig, seed: int) -> Pool:
    return load_professions(config.path)


def _load_digits(config: TaskConfig, seed: int) -> Pool:
    return load_digit_images()


def _load_spoken_words(config: TaskConfig, seed: int) -> Pool:
    return load_spoken_words()


def _load_own_files(config: TaskConfig, seed: int) -> Pool:
    path, format = own_files(config)
    return OWN_FILES[format.kind].load(path, format)


def _questions(prompt: str) -> FormatConfig:
    return FormatConfig(prompt=prompt, choices="choices", answer="answer")


_QUESTION = _questions("Question: {question}\nAnswer:")
_SCIENCE, _COMMON_SENSE, _EXAM = map(_questions, ("{question}", "Question: {question}", ABOUT + "{question}"))
_DIAGNOSIS = FormatConfig(prompt="{description}:", choices=list(CHAPTERS), answer="chapter")
_IMAGE, _AUDIO = FormatConfig(image="image", answer="class"), FormatConfig(audio="audio", answer="class")

#: Name of a task to its entry.
TASKS: Mapping[str, TaskEntry] = {
    "icd10": TaskEntry(
        _load_icd10,
        "text",
        "the ICD-10-CM chapter of a diagnosis (comes with the installation)",
        FormatConfig(prompt="{description}:", choices=list(CHAPTERS), answer="chapter"),
    ),
    "arc_easy": TaskEntry(_load_questions, "text", "the easier science questions of ARC", _QUESTION),
    "arc_challenge": TaskEntry(_load_questions, "text", "the harder science questions of ARC", _QUESTION),
    "openbookqa": TaskEntry(
        _load_questions, "text", "questions that need a fact of elementary science", _questions("{question}")
    ),
    "commonsense_qa": TaskEntry(
        _load_questions, "text", "questions that need common sense", _questions("Question: {question}")
    ),
    "professions": TaskEntry(
        _load_professions,
        "text",
        "a hospital, a bank and a court, each with subjects of MMLU",
        _questions(ABOUT + "{question}"),
    ),
    "digits": TaskEntry(_load_digits, "image", "scanned digits of 8 x 8 pixels (comes with scikit-learn)", _IMAGE),
    "spoken_words": TaskEntry(
        _load_spoken_words, "audio", "twenty spoken words, a client per accent (by espeak-ng)", _AUDIO
    ),
    "shapes": TaskEntry(
        detection_tasks.load_drawn, "shapes", "boxes of five shapes in drawn scenes, a client per style", _IMAGE
    ),
    OWN: TaskEntry(
        _load_own_files, "text", "your own files of text, images or audio, with answers, classes or transcripts"
    ),
}


def load_pool(config: TaskConfig, seed: int, private: bool = True) -> Pool:
    """Return the examples of a task, before they are split.

    Args:
        config: the section that names the task and its files, if any.
        seed: the run's seed.
        private: False on the server of a deployment, whose data need not say which client a row belongs to.

    Raises:
        UserError: the task is unknown, or its data is missing or invalid.
    """
    if not private and config.format is not None:
        config = config.model_copy(update={"format": config.format.model_copy(update={"group": None})})
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
    return _modality(task).build_for_client(task, slm, facts)


def base_models(task: TaskConfig) -> BaseModels:
    """Return the part of a task's modality that deals with base models, without loading a model.

    Raises:
        UserError: the task is unknown, or its own images have no classes.
    """
    return _modality(task).models(task)


def load_private(format: FormatConfig, path: Path, modality: Modality) -> Pool:
    """Return the examples of one client from files in the user's own format.

    Args:
        format: how rows become examples. All of them are this client's.
        path: the client's file or directory.
        modality: the client's modality, which knows the classes.

    Raises:
        UserError: a file, a row or the format is invalid.
    """
    return OWN_FILES[format.kind].load_private(path, format.model_copy(update={"group": None}), modality)


def modality_kind(task: TaskConfig) -> str:
    """Return the key of `MODALITIES` for a task.

    Raises:
        UserError: the task is unknown.
    """
    entry = _entry(task)
    return task.format.kind if task.format is not None else entry.modality


def asked_form(task: TaskConfig) -> FormatConfig:
    """Return the columns of a table with which a task's trained model is asked.

    Raises:
        UserError: the task is unknown, or the user's own files have no format.
    """
    form = task.format or _entry(task).asked
    return form if form is not None else own_files(task)[1]


def _modality(task: TaskConfig) -> ModalityEntry:
    return MODALITIES[modality_kind(task)]


def _entry(task: TaskConfig) -> TaskEntry:
    """Return the entry of a task; a task with a format is the user's own data, whatever its name."""
    if task.is_own:
        return TASKS[OWN]
    if task.name not in TASKS:
        raise UserError(
            f"task.name: unknown task {task.name!r}. Choose one of {', '.join(TASKS)}, or set task.path and "
            "task.format for files of your own."
        )
    return TASKS[task.name]
