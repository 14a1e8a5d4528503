"""Causal language models of the text modality: loading, sizes without weights, and the facts that a pair shares."""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError, in_section
from fedcollm.modalities.text.architectures import check_causal
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.text.vocabulary import check_tokens
from fedcollm.models.adapters import resolve_dtype
from fedcollm.models.layer_settings import after_cut
from fedcollm.models.pretrained import (
    base_directory,
    load_causal_lm,
    load_config,
    load_tokenizer,
    start_tokens,
    text_sizes,
    transformers_class,
)
from fedcollm.models.pruning import KEPT_LAYERS, kept_layers, neuron_count

#: Context length, in tokens, of a model whose configuration has no limit.
_UNBOUNDED = 1_000_000

# For estimates without a tokenizer:
_UTF8_BYTES_PER_TOKEN = 4
_TYPICAL_TOKENS = 64, 4  # tokens of a typical example, and of its answer alone


@dataclass(frozen=True)
class TextModelFacts:
    """What a text task needs to know about its models.

    Attributes:
        tokenizer: the transformers tokenizer that the models share.
        vocabulary_size: size of the output space that the models share.
        context_length: longest sequence that the models of both roles accept, in tokens.
        start: tokens that the tokenizer puts before every text.
    """

    tokenizer: Any
    vocabulary_size: int
    context_length: int
    start: tuple[int, ...] = ()


class PairFacts(NamedTuple):
    """The facts of each role, which are the same object if the models share a tokenizer."""

    slm: TextModelFacts
    llm: TextModelFacts


def pair_facts(slm: ModelConfig, llm: ModelConfig, across_tokenizers: bool) -> PairFacts:
    """Return the tokenizer, the output space and the context length of each role.

    Args:
        slm: the section of the SLM.
        llm: the section of the LLM.
        across_tokenizers: whether the models may have different tokenizers.

    Raises:
        UserError: the models have different tokenizers, but may not.
    """
    other = None
    with in_section("slm"):
        tokenizer = load_tokenizer(slm.source)
    if llm.source != slm.source:
        with in_section("llm"):
            other = load_tokenizer(llm.source)
    configs = [text_sizes(load_config(model.source)) for model in (slm, llm)]
    for model, own, shape in zip((slm, llm), (tokenizer, other or tokenizer), configs, strict=True):
        check_tokens(model.source, own, shape.vocab_size)
    context = min(getattr(c, "max_position_embeddings", _UNBOUNDED) for c in configs)
    if other is None or other.get_vocab() == tokenizer.get_vocab():
        size = min(c.vocab_size for c in configs)
        facts = TextModelFacts(tokenizer, size, context, start_tokens(tokenizer))
        return PairFacts(facts, facts)
    if not across_tokenizers:
        raise UserError(
            f"llm.source {llm.source!r} ({len(other)} tokens) and slm.source {slm.source!r} ({len(tokenizer)} tokens) "
            "have different tokenizers, so their outputs can't be compared row by row. Choose two models of one "
            "family, or set server.distillation.across_tokenizers: true to compare them over the tokens that they "
            "share."
        )
    pair = zip((tokenizer, other), configs, strict=True)
    return PairFacts(*(TextModelFacts(own, shape.vocab_size, context, start_tokens(own)) for own, shape in pair))


def client_facts(slm: ModelConfig, vocabulary_size: int, context_length: int) -> TextModelFacts:
    """Return the facts for a deployed client, which has only the SLM.

    Args:
        slm: the section of the SLM.
        vocabulary_size: size of the output space that both models share, from the server.
        context_length: longest sequence that both models accept, in tokens, from the server.
    """
    tokenizer = load_tokenizer(slm.source)
    return TextModelFacts(tokenizer, vocabulary_size, context_length, start_tokens(tokenizer))


class TextModels:
    """The part of the text modality that deals with models and needs no tokenizer."""

    causal_lm: ClassVar[bool] = True

    def load_model(self, section: ModelConfig, role: str, device: torch.device, seed: int) -> nn.Module:
        """Return a causal language model, whose `name_or_path` says where it can be loaded from again.

        Args:
            section: the section `llm` or `slm` of the configuration. Its source is a hub id, a directory, a `.gguf`
                file or the name of a shipped model.
            role: `slm` or `llm`.
            device: the device on which the network will run.
            seed: unused, because the weights are pretrained.

        Raises:
            UserError: the source does not exist, can't be read, or has too few layers.
        """
        place = base_directory(section.source, section.layers)
        dtype = resolve_dtype(section.dtype, device)
        placed = section.device_map if device.type == "cuda" else None  # a CPU is a single device
        network = load_causal_lm(place, dtype, section.attention, device.type, placed)
        check_causal(section.source, network.config)
        return network if placed else network.to(device)

    def prepare(self, section: ModelConfig) -> None:
        """Convert and cut the base network once, and keep the result in the cache.

        Raises:
            UserError: the source does not exist, can't be read, or has too few layers.
        """
        base_directory(section.source, section.layers)

    def outline(self, section: ModelConfig) -> nn.Module:
        """Return the same network without weights.

        For the hub ids in `config/presets/architectures.json`, nothing is downloaded.

        Raises:
            UserError: the source does not exist or has too few layers.
        """
        shape, auto_class = _shape(section), transformers_class("AutoModelForCausalLM")
        with torch.device("meta"):
            network = auto_class.from_config(shape)
        check_causal(section.source, network.config)
        return network

    def slm_layers(self, slm: ModelConfig, llm: nn.Module) -> list[int]:
        """Return the index within the LLM of each layer of an SLM that consists of layers of the LLM."""
        total, shape = text_sizes(llm.config).num_hidden_layers, text_sizes(load_config(slm.source))
        is_cut = shape.num_hidden_layers < total  # otherwise both models may be one that was itself cut out of another
        kept = getattr(shape, KEPT_LAYERS, None) if is_cut else None
        return kept_layers(total, slm.layers or kept or total)

    def trained_modules(self, network: nn.Module) -> list[str]:
        """Return nothing: only the adapter is trained."""
        return []

    def adapted_layers(self, network: nn.Module) -> list[str] | None:
        """Return None, for all linear layers except the head."""
        return None

    def footprint(self, example: TextExample | None, shape: Any, scoring: bool = False) -> tuple[int, int]:
        """Return estimates of the number of tokens and of rows of logits of an example.

        The prompt counts once, plus the longest choice in training, or all choices in scoring.
        """
        if example is None:
            return _TYPICAL_TOKENS
        choices = [_tokens(choice) for choice in example.choices]
        prompt = min(_tokens(example.text), getattr(shape, "max_position_embeddings", _UNBOUNDED))
        return prompt + (sum(choices) if scoring else max(choices)), max(choices)


def shape_text(source: str) -> str | None:
    """Return the configuration of a source's base model as text; None if it is on the hub, where it may change.

    Raises:
        UserError: the source does not exist or can't be read.
    """
    known = _architectures()
    if source in known:
        return json.dumps(known[source])
    file = Path(base_directory(source, None)) / "config.json"
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _architectures() -> dict[str, Any]:
    architectures = resources.files("fedcollm.config") / "presets" / "architectures.json"
    return json.loads(architectures.read_text(encoding="utf-8"))


def _shape(section: ModelConfig) -> Any:
    """Return the configuration of the base network after layers are cut."""
    known, source = _architectures(), section.source
    shape = transformers_class("AutoConfig").for_model(**known[source]) if source in known else load_config(source)
    text = text_sizes(shape)
    if section.layers is not None:
        kept = kept_layers(text.num_hidden_layers, section.layers)
        for name, value in after_cut(text, text.num_hidden_layers, kept).items():
            setattr(text, name, value)
        text.num_hidden_layers = len(kept)
    if section.mlp_share < 1 and hasattr(text, "intermediate_size"):
        text.intermediate_size = neuron_count(text.intermediate_size, section.mlp_share)
    return shape


def _tokens(text: str) -> int:
    return -(-len(text.encode()) // _UTF8_BYTES_PER_TOKEN)
