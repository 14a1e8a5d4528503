"""Image classifiers: the small ones that we make from a configuration, and directories of any others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.models.adapters import resolve_dtype

#: Common to all of `VISION_MODELS`: 8 x 8 grey images of ten classes.
VISION_SHAPE: Mapping[str, Any] = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}

#: Image classifiers made from a configuration, with random weights: pair them with `pretrain_epochs`.
VISION_MODELS: Mapping[str, Mapping[str, int]] = {
    "vit-digits-large": {"hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 192},
    "vit-digits-small": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
}


def vision_config(source: str) -> ViTConfig:
    """Return the configuration of one of `VISION_MODELS`."""
    return ViTConfig(**VISION_SHAPE, **VISION_MODELS[source])  # pyright: ignore[reportArgumentType]


class ImageModels:
    """The part of the modality that knows its models."""

    causal_lm: ClassVar[bool] = False

    def load_model(self, section: ModelConfig, role: str, device: torch.device, seed: int) -> nn.Module:
        """Return an image classifier of transformers.

        Args:
            section: `llm` or `slm` of the configuration; its source is one of `VISION_MODELS` or a directory.
            role: `slm` or `llm`.
            device: where the network will compute.
            seed: of the random weights of `VISION_MODELS`.

        Raises:
            UserError: the source is neither, or can't be read.
        """
        dtype = resolve_dtype(section.dtype, device)
        if section.source in VISION_MODELS:
            torch.manual_seed(seed)
            network = cast(nn.Module, ViTForImageClassification(vision_config(section.source)))
            return network.to(dtype).to(device)
        return _from_directory(AutoModelForImageClassification, section.source, dtype=dtype).to(device)

    def outline(self, section: ModelConfig) -> nn.Module:
        """Return the same network without weights.

        Raises:
            UserError: the source is neither one of `VISION_MODELS` nor a directory, or can't be read.
        """
        known = section.source in VISION_MODELS
        shape = vision_config(section.source) if known else _from_directory(AutoConfig, section.source)
        with torch.device("meta"):
            return AutoModelForImageClassification.from_config(shape)

    def is_pretrained(self, section: ModelConfig) -> bool:
        """Return False for `VISION_MODELS`, whose weights are random and depend on the run's seed."""
        return section.source not in VISION_MODELS

    def footprint(self, example: Any, shape: Any, scoring: bool = False) -> tuple[int, int]:
        """Return an image's patches with the class token, and its one row of logits."""
        return (shape.image_size // shape.patch_size) ** 2 + 1, 1


def _from_directory(loader: Any, source: str, **options: Any) -> Any:
    if not Path(source).is_dir():
        raise UserError(
            f"model source {source!r} is neither an image classifier that ships ({', '.join(VISION_MODELS)}) nor a "
            "directory. Give one of these."
        )
    try:
        return loader.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise UserError(f"model source {source!r} can't be loaded: {str(error).splitlines()[0]}") from error
