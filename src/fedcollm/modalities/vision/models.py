"""Image classifiers: small ones with random weights that ship with fedcollm, and directories of any others."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import nn

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.modalities.classifiers import refuse_cut
from fedcollm.models.adapters import resolve_dtype
from fedcollm.models.pretrained import from_pretrained, transformers_class

if TYPE_CHECKING:
    from transformers import ViTConfig

#: What these models are called in messages.
_WHAT = "image classifier"

#: Options common to all `VISION_MODELS`, which classify gray images of 8 x 8 pixels into ten classes.
VISION_SHAPE: Mapping[str, Any] = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}

#: Name of a shipped image classifier to its configuration. The weights are random, so use them with `pretrain_epochs`.
VISION_MODELS: Mapping[str, Mapping[str, int]] = {
    "vit-digits-large": {"hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 192},
    "vit-digits-small": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
}


def vision_config(source: str) -> "ViTConfig":
    """Return the configuration of one of `VISION_MODELS`."""
    return transformers_class("ViTConfig")(**VISION_SHAPE, **VISION_MODELS[source])


class ImageModels:
    """The part of the image modality that deals with models."""

    causal_lm: ClassVar[bool] = False

    def load_model(self, section: ModelConfig, role: str, device: torch.device, seed: int) -> nn.Module:
        """Return an image classifier of transformers.

        Args:
            section: the section `llm` or `slm` of the configuration. Its source is a key of `VISION_MODELS` or a
                directory.
            role: `slm` or `llm`.
            device: the device on which the network will run.
            seed: seed of the random weights of `VISION_MODELS`.

        Raises:
            UserError: the source is neither of these, or can't be read, or a part of its layers is asked for.
        """
        refuse_cut(section, _WHAT, f"{role}.")
        dtype = resolve_dtype(section.dtype, device)
        if section.source in VISION_MODELS:
            cast(Any, torch).manual_seed(seed)
            network = transformers_class("ViTForImageClassification")(vision_config(section.source))
            return network.to(dtype).to(device)
        return _from_directory("AutoModelForImageClassification", section.source, dtype=dtype).to(device)

    def prepare(self, section: ModelConfig) -> None:
        """Do nothing, because these models are neither converted nor cut."""

    def outline(self, section: ModelConfig) -> nn.Module:
        """Return the same network without weights.

        Raises:
            UserError: the source is neither a key of `VISION_MODELS` nor a directory, or can't be read, or a part of
                its layers is asked for.
        """
        refuse_cut(section, _WHAT)
        known = section.source in VISION_MODELS
        shape = vision_config(section.source) if known else _from_directory("AutoConfig", section.source)
        with torch.device("meta"):
            return transformers_class("AutoModelForImageClassification").from_config(shape)

    def is_pretrained(self, section: ModelConfig) -> bool:
        """Return False for `VISION_MODELS`, whose random weights depend on the run's seed."""
        return section.source not in VISION_MODELS

    def trained_modules(self, network: nn.Module) -> list[str]:
        """Return nothing: only the adapter is trained."""
        return []

    def adapted_layers(self, network: nn.Module) -> list[str] | None:
        """Return None, for all linear layers."""
        return None

    def footprint(self, example: Any, shape: Any, scoring: bool = False) -> tuple[int, int]:
        """Return the number of patches of an image plus its class token, and its single row of logits."""
        return (shape.image_size // shape.patch_size) ** 2 + 1, 1


def _from_directory(loader: str, source: str, **options: Any) -> Any:
    if not Path(source).is_dir():
        raise UserError(
            f"model source {source!r} is neither a shipped image classifier ({', '.join(VISION_MODELS)}) nor a "
            "directory. Give one of these."
        )
    return from_pretrained(
        transformers_class(loader), source, "Give the directory of an image classifier of transformers.", **options
    )
