"""Pretrained models of speech recognition: which kind a source is, and how it is cut, loaded and adapted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import nn

from fedcollm.config import ModelConfig
from fedcollm.errors import SECTION, UserError
from fedcollm.modalities.audio.models import layers_to_adapt, without_random_masks
from fedcollm.modalities.classifiers import MASKS, freeze_statistics
from fedcollm.models.adapters import resolve_dtype
from fedcollm.models.cache import cached
from fedcollm.models.pretrained import SHIPPED, base_directory, from_pretrained, stem, transformers_class
from fedcollm.models.pruning import Layers, kept_layers

#: What to do about a source that is no model of speech.
GIVE_SPEECH = (
    "Give the directory or hub id of a model of speech recognition of transformers, such as whisper or wav2vec2 with a "
    "CTC head, with its tokenizer and its feature extractor."
)

#: Kind of model to the class of transformers that loads it.
_LOADERS: Mapping[str, str] = {"ctc": "AutoModelForCTC", "whisper": "WhisperForConditionalGeneration"}

#: Kind of model to the class of transformers that makes a network from a configuration.
_OUTLINES: Mapping[str, str] = {"ctc": "AutoModelForCTC", "whisper": "AutoModelForSpeechSeq2Seq"}

#: Kind of model to the keys of its configuration that hold numbers of layers.
_COUNTS: Mapping[str, tuple[str, ...]] = {
    "ctc": ("num_hidden_layers",),
    "whisper": ("encoder_layers", "decoder_layers"),  # num_hidden_layers is another name of encoder_layers
}

#: Names of output layers, which get no adapter.
_HEADS = ("lm_head", "proj_out")

#: Samples per second of a typical clip.
_RATE = 16_000

#: Duration in seconds of a typical clip.
_SECONDS = 10.0


class SpeechModels:
    """The part of speech recognition that deals with models.

    Args:
        longest: the longest clip in seconds. Whisper's encoder has positions for 30 s, and keeps the first of them.
    """

    causal_lm: ClassVar[bool] = False

    def __init__(self, longest: float = 30.0):
        self.longest: float = longest

    def load_model(self, section: ModelConfig, role: str, device: torch.device, seed: int) -> nn.Module:
        """Return a network of speech recognition, without randomness that a seed of torch does not cover.

        Args:
            section: the section `llm` or `slm` of the configuration. Its source is a directory or a hub id.
            role: `slm` or `llm`.
            device: the device on which the network will run.
            seed: not used, because all weights are pretrained.

        Raises:
            UserError: the source can't be read, is of neither kind, or does not have these layers.
        """
        kind, place = speech_kind(section.source), _place(section)
        dtype, loader = resolve_dtype(section.dtype, device), transformers_class(_LOADERS[kind])
        network, report = from_pretrained(loader, place, GIVE_SPEECH, dtype=dtype, output_loading_info=True)
        if missing := sorted(name for name in report["missing_keys"] if not name.endswith(MASKS)):
            raise UserError(f"{role}.source {section.source!r} has no {missing[0]}. {GIVE_SPEECH}")
        if kind == "whisper":
            _shorten(network, self.longest)
        return freeze_statistics(without_random_masks(network)).to(device)

    def prepare(self, section: ModelConfig) -> None:
        """Cut the network once, if only some of its layers are kept.

        Raises:
            UserError: as in `load_model`.
        """
        speech_kind(section.source)
        _place(section)

    def outline(self, section: ModelConfig) -> nn.Module:
        """Return the same network without weights.

        Raises:
            UserError: as in `load_model`.
        """
        kind, shape = speech_kind(section.source), _shape(section.source)
        if section.layers is not None:
            for key in _COUNTS[kind]:
                setattr(shape, key, len(kept_layers(getattr(shape, key), section.layers)))
        if kind == "whisper":
            shape.max_source_positions = min(shape.max_source_positions, _positions(self.longest))
        with torch.device("meta"):
            return transformers_class(_OUTLINES[kind]).from_config(shape)

    def is_pretrained(self, section: ModelConfig) -> bool:
        """Return True: there are no models of speech recognition with random weights."""
        return True

    def trained_modules(self, network: nn.Module) -> list[str]:
        """Return nothing: only the adapter is trained."""
        return []

    def adapted_layers(self, network: nn.Module) -> list[str]:
        """Return the names of all linear layers except the output layer and the feature projection."""
        return layers_to_adapt(network, _HEADS)

    def footprint(self, example: Any, shape: Any, scoring: bool = False) -> tuple[int, int]:
        """Return the numbers of positions and of rows: of the frames of a clip, or of encoder and decoder together."""
        if shape.model_type == "whisper":
            return shape.max_source_positions + most_tokens(self.longest), most_tokens(self.longest)
        seconds = _SECONDS if example is None else min(self.longest, example.recording.facts.seconds)
        frames = frames_of(convolutions(shape), round(seconds * _RATE))
        return frames, frames


def speech_kind(source: str) -> Literal["ctc", "whisper"]:
    """Return which kind of model a source is, as its configuration says.

    Args:
        source: a directory or a hub id.

    Raises:
        UserError: it can't be read, or is of neither kind.
    """
    shape = _shape(source)
    if shape.model_type == "whisper":
        return "whisper"
    named = [str(name) for name in shape.architectures or ()]
    if any(name.endswith("ForCTC") for name in named) and hasattr(shape, "conv_kernel"):
        return "ctc"
    what = f"{shape.model_type} ({', '.join(named) or 'no architecture'})"
    raise UserError(f"model source {source!r} does not recognize speech: it is of type {what}. {GIVE_SPEECH}")


def convolutions(shape: Any) -> tuple[tuple[int, int], ...]:
    """Return kernel and stride of each convolution between samples and frames, given a network's configuration."""
    return tuple(zip(map(int, shape.conv_kernel), map(int, shape.conv_stride), strict=True))


def frames_of(layers: tuple[tuple[int, int], ...], samples: int) -> int:
    """Return the number of frames that convolutions make of so many samples.

    Args:
        layers: kernel and stride of each convolution.
        samples: number of samples.

    >>> frames_of(((10, 5), (3, 2)), 100)
    9
    """
    for kernel, stride in layers:
        samples = (samples - kernel) // stride + 1
    return max(samples, 0)


def most_tokens(longest: float) -> int:
    """Return the largest number of tokens that Whisper writes for a clip, with the end of the transcript.

    There are 10 per second and 8 more, but at most 224, which is Whisper's own limit for 30 s.

    Args:
        longest: the longest clip in seconds.

    >>> most_tokens(1.0), most_tokens(30.0)
    (18, 224)
    """
    return min(224, 8 + round(10 * longest))


def layers_of_slm(slm: ModelConfig, llm: Any) -> list[int]:
    """Return the index within the LLM of each layer of an SLM that consists of layers of the LLM.

    Args:
        slm: the section `slm` of the configuration.
        llm: the LLM's network.

    Raises:
        UserError: the LLM has stacks of different depths, whose layers have no common index.
    """
    counts = {getattr(llm.config, key) for key in _COUNTS[speech_kind(slm.source)]}
    if len(counts) > 1:
        raise UserError(
            f"server.layer_transfer: {slm.source!r} has encoder and decoder of different depths. "
            "Set server.layer_transfer: 0."
        )
    return kept_layers(counts.pop(), slm.layers or llm.config.num_hidden_layers)


def speech_directory(source: str) -> str:
    """Return the directory or hub id of a whole model.

    Raises:
        UserError: the source is neither of these.
    """
    if source in SHIPPED or Path(source).suffix == ".gguf":
        raise UserError(f"model source {source!r} is a language model. {GIVE_SPEECH}")
    return base_directory(source, None)


def _shape(source: str) -> Any:
    return from_pretrained(transformers_class("AutoConfig"), speech_directory(source), GIVE_SPEECH)


def _place(section: ModelConfig) -> str:
    """Return the directory or hub id of a network, cut to some of its layers if it has to be."""
    place, layers = speech_directory(section.source), section.layers
    if layers is None:
        return place
    which = f"{layers}-layers" if isinstance(layers, int) else "layers-" + "-".join(map(str, layers))
    return str(cached(f"{stem(section.source, Path(place))}-{which}", lambda target: _cut(place, layers, target)))


def _cut(place: str, layers: Layers, target: Path) -> None:
    """Save a network with some of its layers; of Whisper, with the same ones of encoder and decoder."""
    kind = speech_kind(place)
    network = from_pretrained(transformers_class(_LOADERS[kind]), place, GIVE_SPEECH, dtype=torch.float32)
    base = network.base_model
    for stack in (base.encoder, base.decoder) if kind == "whisper" else (base.encoder,):
        if not isinstance(getattr(stack, "layers", None), nn.ModuleList):
            raise UserError(
                f"{SECTION}layers: {type(network).__name__} can't be cut to some of its layers. Set {SECTION}layers: "
                "null."
            )
        stack.layers = nn.ModuleList(stack.layers[i] for i in kept_layers(len(stack.layers), layers))
    for key in _COUNTS[kind]:
        setattr(network.config, key, len(base.encoder.layers))
    network.save_pretrained(target)
    for name in ("AutoTokenizer", "AutoFeatureExtractor"):
        from_pretrained(transformers_class(name), place, GIVE_SPEECH).save_pretrained(target)


def _positions(longest: float) -> int:
    """Return the number of positions of Whisper's encoder for so many seconds."""
    return round(longest * 100) // 2


def _shorten(network: Any, longest: float) -> None:
    """Keep only the positions of Whisper's encoder that a clip of so many seconds needs."""
    positions, encoder = _positions(longest), network.model.encoder
    if positions < encoder.max_source_positions:
        kept = encoder.embed_positions.weight[:positions].clone()
        encoder.embed_positions = cast(Any, nn.Embedding).from_pretrained(kept)
        encoder.max_source_positions = network.config.max_source_positions = positions
