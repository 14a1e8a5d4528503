"""From a task's configuration to the task object and its data."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fedcollm.config import TaskConfig
from fedcollm.data.files import load_custom
from fedcollm.data.sources.icd10 import CHAPTERS, load_icd10
from fedcollm.data.sources.professions import load_professions
from fedcollm.data.sources.qa import QA_TASKS, load_qa
from fedcollm.errors import UserError
from fedcollm.modalities.base import Pool, Task
from fedcollm.modalities.text.cross_tokenizer import TokenizerBridge
from fedcollm.modalities.text.task import TextTask
from fedcollm.modalities.vision.task import ImageTask, load_digit_images

IMAGE_TASKS = ("digits",)
TASK_NAMES = ("icd10", *QA_TASKS, "professions", *IMAGE_TASKS, "custom")


@dataclass(frozen=True)
class TextModelFacts:
    """What a text task must know of the models that it serves.

    Attributes:
        tokenizer: common to them.
        vocabulary_size: size of the output space common to them.
        context_length: longest sequence that both roles take, in tokens.
        start: tokens that the tokenizer puts before every text.
    """

    tokenizer: Any
    vocabulary_size: int
    context_length: int
    start: tuple[int, ...] = ()


class PairFacts(NamedTuple):
    """Facts a role: one object twice where the two share a tokenizer."""

    slm: TextModelFacts
    llm: TextModelFacts


def is_text(name: str) -> bool:
    """Whether a task needs causal language models.

    Raises:
        UserError: no such task.
    """
    if name not in TASK_NAMES:
        raise UserError(f"task.name: unknown task {name!r}. Known: {', '.join(TASK_NAMES)}")
    return name not in IMAGE_TASKS


def load_pool(config: TaskConfig, seed: int) -> Pool:
    """The examples of a task, before they are split.

    Raises:
        UserError: unknown task, or data that is missing or broken.
    """
    is_text(config.name)
    if config.name == "digits":
        return load_digit_images()
    if config.name == "icd10":
        needed = config.clients * config.private_size + config.public_size + config.unlabelled_size + config.test_size
        return load_icd10(math.ceil(needed / len(CHAPTERS)), seed)
    if config.name in QA_TASKS:
        return load_qa(config.name, config.path)
    if config.name == "professions":
        return load_professions(config.path)
    if config.path is None or config.format is None:
        raise UserError(
            "task.name: custom needs task.path (a file or directory) and task.format (prompt, answer, choices)."
        )
    return load_custom(config.path, config.format)


def build_task(name: str, text_models: Callable[[], PairFacts]) -> tuple[Task, TokenizerBridge | None]:
    """The task, and where each role has a tokenizer of its own the bridge from this task, the SLM's, to the LLM's.

    Args:
        name: of the task.
        text_models: asked only by tasks that read text.
    """
    if not is_text(name):
        return ImageTask(name, [str(digit) for digit in range(10)]), None
    facts = text_models()
    task = text_task(name, facts.slm)
    return task, None if facts.llm is facts.slm else TokenizerBridge(task, text_task(name, facts.llm))


def text_task(name: str, facts: TextModelFacts) -> TextTask:
    """A text task on some models' tokenizer."""
    return TextTask(name, facts.tokenizer, facts.vocabulary_size, facts.context_length, start=facts.start)
