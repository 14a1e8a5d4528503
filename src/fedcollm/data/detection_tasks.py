"""What the catalogue's entries of detection are built from: the task `shapes`, and the user's own images with boxes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedcollm.config import FormatConfig, ModelConfig, TaskConfig
from fedcollm.data.object_files import find_object_classes, load_objects
from fedcollm.data.pool import Pool
from fedcollm.data.sources.shapes import SHAPES, load_shapes
from fedcollm.errors import UserError
from fedcollm.modalities.base import Modality
from fedcollm.modalities.facts import class_fault, class_names
from fedcollm.modalities.vision.detection import DetectionPair, DetectionTask
from fedcollm.modalities.vision.detection_pixels import pixels_of
from fedcollm.modalities.vision.detectors import DetectorModels


def load_drawn(config: TaskConfig, seed: int) -> Pool:
    """Return the scenes of the task `shapes`, which do not depend on the seed."""
    return load_shapes()


def load_own(path: Path, format: FormatConfig) -> Pool:
    """Return the examples of a user's own images with boxes.

    Raises:
        UserError: a file, an image, a box or a class is invalid.
    """
    return load_objects(path, format, _own_classes(path, format))


def models_of_shapes(config: TaskConfig) -> DetectorModels:
    """Return what deals with the base models of the task `shapes`."""
    return DetectorModels(SHAPES)


def models_of_own(path: Path, format: FormatConfig) -> DetectorModels:
    """Return what deals with the base models of a user's own objects.

    Raises:
        UserError: the training data can't be read, or has no class.
    """
    return DetectorModels(_own_classes(path, format))


def build_shapes(config: TaskConfig, slm: ModelConfig, llm: ModelConfig, across_tokenizers: bool) -> Modality:
    """Return the modality of the task `shapes` for a pair of models.

    Raises:
        UserError: a model can't be read.
    """
    return _detection(config.name, SHAPES, slm, llm)


def build_own(name: str, path: Path, format: FormatConfig, slm: ModelConfig, llm: ModelConfig) -> Modality:
    """Return the modality of a user's own objects for a pair of models.

    Raises:
        UserError: the training data or a model can't be read.
    """
    return _detection(name, _own_classes(path, format), slm, llm)


def build_for_client(name: str, slm: ModelConfig, facts: Mapping[str, Any]) -> Modality:
    """Return the modality of a deployed client.

    Raises:
        UserError: the model can't be read, or the facts have no valid classes.
    """
    return DetectionTask(name, class_names(name, facts, fewest=1), pixels_of(slm))


def _own_classes(path: Path, format: FormatConfig) -> tuple[str, ...]:
    """Return the classes of a user's own objects; raise UserError if clients would refuse the name of one."""
    classes = find_object_classes(path, format)
    if reason := class_fault(classes, fewest=1):
        raise UserError(f"task.path: {path} has classes of objects with names that can't be used: {reason}. Rename it.")
    return classes


def _detection(name: str, classes: Sequence[str], slm: ModelConfig, llm: ModelConfig) -> Modality:
    own, other = pixels_of(slm), pixels_of(llm)
    task = DetectionTask(name, classes, own)
    return task if own == other else DetectionPair(task, DetectionTask(name, classes, other))
