"""The user's own files: for each kind, what loads them all, and what loads those of one client."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcollm.config import FormatConfig, TaskConfig
from fedcollm.data import detection_tasks
from fedcollm.data.audio_files import find_sounds, load_sounds, load_speech
from fedcollm.data.files import load_custom
from fedcollm.data.image_files import find_classes, load_images
from fedcollm.data.object_files import load_objects
from fedcollm.data.pool import Pool
from fedcollm.errors import UserError


@dataclass(frozen=True)
class OwnFiles:
    """How files of one kind are loaded.

    Attributes:
        load: returns all examples, given the path and the format.
        load_private: returns the examples of one client, given its path, the format without groups, and its modality,
            which knows the classes.
    """

    load: Callable[[Path, FormatConfig], Pool]
    load_private: Callable[[Path, FormatConfig, Any], Pool]


#: Kind of files (`FormatConfig.kind`, which is also a key of `MODALITIES`) to what loads them.
OWN_FILES: Mapping[str, OwnFiles] = {
    "text": OwnFiles(load_custom, lambda path, form, modality: load_custom(path, form, several_classes=False)),
    "image_files": OwnFiles(
        lambda path, form: load_images(path, form, find_classes(path, form)),
        lambda path, form, modality: load_images(path, form, modality.classes, several_classes=False),
    ),
    "audio_files": OwnFiles(
        lambda path, form: load_sounds(path, form, find_sounds(path, form)),
        lambda path, form, modality: load_sounds(path, form, modality.classes, several_classes=False),
    ),
    "speech_files": OwnFiles(load_speech, lambda path, form, modality: load_speech(path, form)),
    "object_files": OwnFiles(
        detection_tasks.load_own,
        lambda path, form, modality: load_objects(path, form, modality.classes, needs_objects=False),
    ),
}


def own_files(config: TaskConfig) -> tuple[Path, FormatConfig]:
    """Return the path and the format of a task's own files.

    Raises:
        UserError: one of them is missing.
    """
    if config.path is None or config.format is None:
        raise UserError(
            "task.name: custom needs your files. Set task.path (a file or directory) and task.format (prompt, answer, "
            "choices; for images, image and answer; for detection, boxes; for audio, audio and answer or transcript)."
        )
    return config.path, config.format
