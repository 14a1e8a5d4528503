"""Pretrained detectors of transformers, YOLOS and DETR, with heads for the task's classes; and the shipped ones.

YOLOS (Fang et al., arXiv 2106.00666) and DETR (Carion et al., arXiv 2005.12872) answer with a fixed number of queries
per image. Each has the logits of C classes and of "no object", and a box.

A detector with other classes than the task gets a fresh last layer of its class head. Both heads, that of the classes
and that of the boxes, are then trained as a whole, in float32, and travel with the adapter. Batch normalization always
computes with the statistics of pretraining, as in `classifiers.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.modalities.classifiers import FreshHead, freeze_statistics, refuse_cut
from fedcollm.modalities.vision.cell_detector import PATCHES, QUERIES, CellConfig, CellDetector
from fedcollm.models.adapters import resolve_dtype
from fedcollm.models.made import WEIGHTS, network_name
from fedcollm.models.pretrained import SHIPPED, base_directory, from_pretrained, transformers_class

#: The advice for a source that can't be loaded.
GIVE_A_DETECTOR = "Give a directory or a hub id of a detector of the families YOLOS or DETR."

#: Families whose outputs and loss are those of DETR: a softmax over the classes and "no object".
FAMILIES = ("detr", "yolos")

#: Names of the two heads, which are the same in both families.
HEADS = ("class_labels_classifier", "bbox_predictor")

#: Name of a shipped detector to its configuration. The weights are random, so use them with `pretrain_epochs`.
DETECTORS: Mapping[str, CellConfig] = {
    "cells-shapes-large": CellConfig(widths=(32, 64, 96), depths=(1, 2, 2), num_labels=5),
    "cells-shapes-small": CellConfig(widths=(16, 32, 64), depths=(1, 1, 1), num_labels=5),
}


class DetectorModels:
    """The part of detection that deals with models.

    Args:
        classes: names of the task's classes.
    """

    causal_lm: ClassVar[bool] = False

    def __init__(self, classes: Sequence[str]):
        self.classes: tuple[str, ...] = tuple(classes)

    def load_model(self, section: ModelConfig, role: str, device: torch.device, seed: int) -> nn.Module:
        """Return a detector whose class head has one column per class and one for "no object".

        Args:
            section: the section `llm` or `slm` of the configuration. Its source is a key of `DETECTORS`, a directory
                or a hub id.
            role: `slm` or `llm`.
            device: the device on which the network will run.
            seed: seed of the random weights of `DETECTORS`, and of a fresh head.

        Raises:
            UserError: the source can't be loaded, is no YOLOS or DETR, or lacks weights other than those of its heads.
        """
        refuse_cut(section, "image classifier", f"{role}.")
        dtype = resolve_dtype(section.dtype, device)
        cast(Any, torch).manual_seed(seed)  # of `DETECTORS`, and of whatever a checkpoint lacks of its heads
        if (name := network_name(section.source)) in DETECTORS:
            network, missing = CellDetector(replace(DETECTORS[name])).to(dtype), set[str]()
        else:
            _shape(section)
            loader, place = transformers_class("AutoModelForObjectDetection"), _place(section)
            options = {"dtype": dtype, "output_loading_info": True}
            network, report = from_pretrained(loader, place, GIVE_A_DETECTOR, **options)
            missing = set(report["missing_keys"])
        if others := sorted(name for name in missing if not name.startswith(HEADS)):
            raise UserError(
                f"{role}.source {section.source!r} is no detector: it has no {others[0]}. {GIVE_A_DETECTOR}"
            )
        self._give_heads(network, seed, bool(missing))
        if name in DETECTORS and name != section.source:
            _load_weights(network, section.source, role)
        return freeze_statistics(network).to(device)

    def _give_heads(self, network: Any, seed: int, incomplete: bool) -> None:
        """Give the class head a fresh last layer if it has other classes than the task, or has no weights."""
        if network.config.num_labels == len(self.classes) and not incomplete:
            return
        head = network.class_labels_classifier
        name = HEADS[0] if isinstance(head, nn.Linear) else f"{HEADS[0]}.layers.{len(head.layers) - 1}"
        inputs = network.get_submodule(name).in_features
        network.set_submodule(name, FreshHead(inputs, len(self.classes) + 1, seed))
        for part in HEADS:  # both are trained as a whole, so they must not round their weights
            module: Any = network.get_submodule(part).float()
            module.register_forward_pre_hook(_in_float32)
        network.config.num_labels = len(self.classes)
        network.config.id2label = dict(enumerate(self.classes))
        network.config.label2id = {name: number for number, name in enumerate(self.classes)}

    def prepare(self, section: ModelConfig) -> None:
        """Check the source; these models are neither converted nor cut.

        Raises:
            UserError: the source does not exist, or a part of its layers is asked for.
        """
        refuse_cut(section, "image classifier")
        if network_name(section.source) not in DETECTORS:
            _place(section)

    def outline(self, section: ModelConfig) -> nn.Module:
        """Return the same network without weights.

        Raises:
            UserError: the source can't be read, is no YOLOS or DETR, or a part of its layers is asked for.
        """
        refuse_cut(section, "image classifier")
        shape = _shape(section)
        with torch.device("meta"):
            if isinstance(shape, CellConfig):
                network: Any = CellDetector(shape)
            else:
                network = transformers_class("AutoModelForObjectDetection").from_config(shape)
            self._give_heads(network, 0, not _has_heads(shape))
        return network

    def is_pretrained(self, section: ModelConfig) -> bool:
        """Return False if weights depend on the run's seed: those of `DETECTORS`, and those of a fresh head."""
        if network_name(section.source) in DETECTORS:
            return False
        shape = _shape(section)
        return _has_heads(shape) and shape.num_labels == len(self.classes)

    def trained_modules(self, network: nn.Module) -> list[str]:
        """Return the names of both heads if the class head is fresh."""
        head = network.get_submodule(HEADS[0])
        return list(HEADS) if any(isinstance(module, FreshHead) for _, module in _modules(head)) else []

    def adapted_layers(self, network: nn.Module) -> list[str]:
        """Return the names of all linear layers except those of the heads.

        Convolutions, such as those of DETR's ResNet, get no adapter.
        """
        linear = (name for name, module in _modules(network) if type(module) is nn.Linear)
        return [name for name in linear if not name.startswith(HEADS)]

    def footprint(self, example: Any, shape: Any, scoring: bool = False) -> tuple[int, int]:
        """Return estimates of the number of positions of an image, and its number of rows, one per query.

        YOLOS computes with patches and queries; DETR with the last feature map of its backbone, of 1/32 of the image's
        side, for an image of 800 x 800 pixels; a shipped detector with the patches of its first stage.
        """
        if isinstance(shape, CellConfig):
            return PATCHES, QUERIES
        queries = getattr(shape, "num_detection_tokens", None) or getattr(shape, "num_queries", 100)
        size: Any = getattr(shape, "image_size", 800)
        patch: Any = getattr(shape, "patch_size", 32)
        (height, width), (rows, columns) = _both_axes(size), _both_axes(patch)
        return (height // rows) * (width // columns) + queries, queries


def _both_axes(size: Any) -> tuple[int, int]:
    """Return a size for both axes, given one for each or one for both."""
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _in_float32(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.float() for value in inputs)


def _shape(section: ModelConfig) -> Any:
    """Return the configuration of a detector.

    Raises:
        UserError: the source can't be read, or is of another family.
    """
    if (name := network_name(section.source)) in DETECTORS:
        return replace(DETECTORS[name])
    shape = from_pretrained(transformers_class("AutoConfig"), _place(section), GIVE_A_DETECTOR)
    if shape.model_type not in FAMILIES:
        raise UserError(
            f"model source {section.source!r} is of the family {shape.model_type}, whose outputs or loss differ from "
            f"those of DETR. {GIVE_A_DETECTOR}"
        )
    return shape


def _place(section: ModelConfig) -> str:
    """Return the directory or hub id of a source; raise UserError if it is neither."""
    if section.source in SHIPPED or Path(section.source).suffix == ".gguf":
        raise UserError(f"model source {section.source!r} is a language model. {GIVE_A_DETECTOR}")
    return base_directory(section.source, None)


def _load_weights(network: nn.Module, source: str, role: str) -> None:
    """Load the weights of a shipped detector from the directory of its pretrained base.

    Raises:
        UserError: they can't be read, or are those of a detector of other classes.
    """
    try:
        cast(Any, safetensors.torch).load_model(network, Path(source) / WEIGHTS)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{role}.source {source!r}: {WEIGHTS} can't be loaded ({str(error).splitlines()[0]}). Copy the directory "
            "again, or pretrain it on this task."
        ) from error


def _has_heads(shape: Any) -> bool:
    """Return whether the weights that belong to a configuration are those of a detector."""
    return isinstance(shape, CellConfig) or any("ForObjectDetection" in name for name in shape.architectures or ())


def _modules(network: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    return cast(Any, network).named_modules()
