"""Audio classifiers: small ones with random weights that ship with fedcollm, and directories of any others."""

import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.modalities.audio.features import Extractor, Features, LogMel
from fedcollm.models.adapters import resolve_dtype
from fedcollm.models.made import network_name
from fedcollm.models.pretrained import from_pretrained, transformers_class

#: Options common to all `AUDIO_MODELS`, which classify log-mel spectrograms of one second into twenty classes. A patch
#: spans all bands: square parts of the spectrum, as in images, scored .12 where whole spectra scored .73.
AUDIO_SHAPE: Mapping[str, Any] = {
    "num_mel_bins": 16,
    "max_length": 96,
    "patch_size": 16,
    "frequency_stride": 16,
    "time_stride": 8,
    "num_labels": 20,
}

#: Name of a shipped audio classifier (AST, Gong et al., arXiv 2104.01778) to its configuration. The weights are random,
#: so use them with `pretrain_epochs`.
AUDIO_MODELS: Mapping[str, Mapping[str, int]] = {
    "ast-words-large": {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 192},
    "ast-words-small": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
}


def audio_config(source: str) -> Any:
    """Return the configuration of one of `AUDIO_MODELS`."""
    return transformers_class("ASTConfig")(**AUDIO_SHAPE, **AUDIO_MODELS[source])


def features_of(source: str) -> Features:
    """Return what turns clips into a model's inputs.

    Args:
        source: a key of `AUDIO_MODELS`, or a directory, which may be one of these after pretraining.

    Raises:
        UserError: the source is neither of these, or has no feature extractor.
    """
    if network_name(source) in AUDIO_MODELS:
        return LogMel(AUDIO_SHAPE["num_mel_bins"], AUDIO_SHAPE["max_length"])
    _check_directory(source)
    return Extractor(source)


class AudioModels:
    """The part of audio classification that deals with models."""

    causal_lm: ClassVar[bool] = False

    def trained_modules(self, network: nn.Module) -> list[str]:
        """Return nothing: only the adapter is trained."""
        return []

    def adapted_layers(self, network: nn.Module) -> list[str] | None:
        """Return None, for all linear layers."""
        return None

    def load_model(self, section: ModelConfig, role: str, device: torch.device, seed: int) -> nn.Module:
        """Return an audio classifier of transformers.

        Args:
            section: the section `llm` or `slm` of the configuration. Its source is a key of `AUDIO_MODELS` or a
                directory.
            role: `slm` or `llm`.
            device: the device on which the network will run.
            seed: seed of the random weights of `AUDIO_MODELS`.

        Raises:
            UserError: the source is neither of these, or can't be read.
        """
        dtype = resolve_dtype(section.dtype, device)
        if section.source in AUDIO_MODELS:
            cast(Any, torch).manual_seed(seed)
            network = cast(nn.Module, transformers_class("ASTForAudioClassification")(audio_config(section.source)))
            return network.to(dtype).to(device)
        network = _from_directory("AutoModelForAudioClassification", section.source, dtype=dtype)
        return without_random_masks(network).to(device)

    def prepare(self, section: ModelConfig) -> None:
        """Do nothing, because these models are neither converted nor cut."""

    def outline(self, section: ModelConfig) -> nn.Module:
        """Return the same network without weights.

        Raises:
            UserError: the source is neither a key of `AUDIO_MODELS` nor a directory, or can't be read.
        """
        known = section.source in AUDIO_MODELS
        shape = audio_config(section.source) if known else _from_directory("AutoConfig", section.source)
        with torch.device("meta"):
            return transformers_class("AutoModelForAudioClassification").from_config(shape)

    def is_pretrained(self, section: ModelConfig) -> bool:
        """Return False for `AUDIO_MODELS`, whose random weights depend on the run's seed."""
        return section.source not in AUDIO_MODELS

    def footprint(self, example: Any, shape: Any, scoring: bool = False) -> tuple[int, int]:
        """Return estimates of a clip's number of patches (of a spectrogram) or frames, and its single row of logits."""
        if hasattr(shape, "frequency_stride"):
            bands = (shape.num_mel_bins - shape.patch_size) // shape.frequency_stride + 1
            return bands * ((shape.max_length - shape.patch_size) // shape.time_stride + 1) + 2, 1
        if hasattr(shape, "conv_stride"):
            return math.ceil(16_000 * _seconds(example) / math.prod(shape.conv_stride)), 1
        return int(getattr(shape, "max_source_positions", 1_500)), 1


def without_random_masks(network: Any) -> Any:
    """Return a network that neither masks its inputs nor leaves out layers at random in training, as wav2vec2 does.

    The masks come from numpy's global random numbers, so no two runs would be the same. A layer that is left out gives
    its adapter no gradient.
    """
    if getattr(network.config, "apply_spec_augment", False):
        network.config.apply_spec_augment = False
    if getattr(network.config, "layerdrop", 0):
        network.config.layerdrop = 0.0
    return network


def layers_to_adapt(network: nn.Module, kept: Collection[str]) -> list[str]:
    """Return the names of all linear layers of a network of audio, except some and the input of its transformer.

    wav2vec2 overwrites, in place, what its feature projection returns for padding, and that layer belongs to its
    feature encoder. Convolutions, between samples and frames or for positions, are no linear layers.

    Args:
        network: the network.
        kept: names of layers that get no adapter, such as heads.
    """
    modules = cast("Iterable[tuple[str, nn.Module]]", cast(Any, network).named_modules())
    linear = [name for name, module in modules if type(module) is nn.Linear]
    return [name for name in linear if name not in kept and "feature_projection" not in name.split(".")]


def _seconds(example: Any) -> float:
    """Return the duration of an example; 10 s for a typical one."""
    return 10.0 if example is None else min(30.0, example.recording.facts.seconds)


def _check_directory(source: str) -> None:
    if not Path(source).is_dir():
        raise UserError(
            f"model source {source!r} is neither a shipped audio classifier ({', '.join(AUDIO_MODELS)}) nor a "
            "directory. Give one of these."
        )


def _from_directory(loader: str, source: str, **options: Any) -> Any:
    _check_directory(source)
    return from_pretrained(
        transformers_class(loader), source, "Give the directory of an audio classifier of transformers.", **options
    )
