"""Causal language models as text needs them: loading, sizes without weights, and what a pair has in common."""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.modalities.text.examples import TextExample
from fedcollm.models.adapters import resolve_dtype
from fedcollm.models.pretrained import (
    base_directory,
    even_layers,
    load_causal_lm,
    load_config,
    load_tokenizer,
    start_tokens,
)

#: Context length, in tokens, of a model whose configuration names none.
_UNBOUNDED = 1_000_000

# For estimates, since no tokenizer is asked:
_UTF8_BYTES_PER_TOKEN = 4
_TYPICAL_TOKENS = 64, 4  # of an example that is not at hand, and of its answer


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
    """Facts per role: one object twice where the two share a tokenizer."""

    slm: TextModelFacts
    llm: TextModelFacts


def pair_facts(slm: ModelConfig, llm: ModelConfig, across_tokenizers: bool) -> PairFacts:
    """Return tokenizer, output space and context length of each role.

    Args:
        slm: the SLM.
        llm: the LLM.
        across_tokenizers: whether the two may have different tokenizers.

    Raises:
        UserError: the two don't share a tokenizer, and may not differ.
    """
    tokenizer, other = load_tokenizer(slm.source), None
    if llm.source != slm.source:
        other = load_tokenizer(llm.source)
    configs = [load_config(model.source) for model in (slm, llm)]
    context = min(getattr(c, "max_position_embeddings", _UNBOUNDED) for c in configs)
    if other is None or other.get_vocab() == tokenizer.get_vocab():
        size = min(c.vocab_size for c in configs)
        facts = TextModelFacts(tokenizer, size, context, start_tokens(tokenizer))
        return PairFacts(facts, facts)
    if not across_tokenizers:
        raise UserError(
            f"llm.source {llm.source!r} ({len(other)} tokens) and slm.source {slm.source!r} ({len(tokenizer)} tokens) "
            "don't share a tokenizer, so their outputs can't be compared row by row. Choose two models of one family, "
            "or set server.distillation.across_tokenizers: true to compare them over the tokens that they share."
        )
    pair = zip((tokenizer, other), configs, strict=True)
    return PairFacts(*(TextModelFacts(own, shape.vocab_size, context, start_tokens(own)) for own, shape in pair))


def client_facts(slm: ModelConfig, vocabulary_size: int, context_length: int) -> TextModelFacts:
    """Return the facts of a client, which has the SLM only and is told what depends on the LLM.

    Args:
        slm: the SLM.
        vocabulary_size: size of the output space that both models share.
        context_length: longest sequence that both models take, in tokens.
    """
    tokenizer = load_tokenizer(slm.source)
    return TextModelFacts(tokenizer, vocabulary_size, context_length, start_tokens(tokenizer))


class TextModels:
    """The part of the modality that knows its models, for which no tokenizer is needed."""

    causal_lm: ClassVar[bool] = True

    def load_model(self, section: ModelConfig, role: str, device: torch.device, seed: int) -> nn.Module:
        """Return a causal language model; its `name_or_path` is where it can be loaded from again.

        Args:
            section: `llm` or `slm` of the configuration; its source is a hub id, a directory, a `.gguf` file or the
                name of a shipped model.
            role: `slm` or `llm`.
            device: where the network will compute.
            seed: unused, as the weights are pretrained.

        Raises:
            UserError: the source does not exist, is not readable, or has fewer layers.
        """
        place = base_directory(section.source, section.layers)
        dtype = resolve_dtype(section.dtype, device)
        return load_causal_lm(place, dtype, section.attention, device.type).to(device)

    def prepare(self, section: ModelConfig) -> None:
        """Convert and cut the base once; what is made is kept in the cache.

        Raises:
            UserError: the source does not exist, is not readable, or has fewer layers.
        """
        base_directory(section.source, section.layers)

    def outline(self, section: ModelConfig) -> nn.Module:
        """Return the same network without weights. Nothing is downloaded for hub ids whose architecture we know.

        Raises:
            UserError: the source does not exist, or has fewer layers.
        """
        shape = _shape(section)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(shape)

    def slm_layers(self, slm: ModelConfig, llm: nn.Module) -> list[int]:
        """Return the index in the LLM of every layer of the SLM, which was cut from it."""
        layers = cast(Any, llm).config.num_hidden_layers
        return even_layers(layers, slm.layers or layers)

    def footprint(self, example: TextExample | None, shape: Any, scoring: bool = False) -> tuple[int, int]:
        """Return an estimate of an example's tokens and of its rows of logits.

        A prompt is read once, with its longest choice in training and with all choices in scoring.
        """
        if example is None:
            return _TYPICAL_TOKENS
        choices = [_tokens(choice) for choice in example.choices]
        prompt = min(_tokens(example.prompt), getattr(shape, "max_position_embeddings", _UNBOUNDED))
        return prompt + (sum(choices) if scoring else max(choices)), max(choices)


def _shape(section: ModelConfig) -> Any:
    """Return the base's configuration after depth pruning."""
    known = json.loads((resources.files("fedcollm.config") / "presets" / "architectures.json").read_text())
    source = section.source
    shape = AutoConfig.for_model(**known[source]) if source in known else load_config(source)
    if section.layers is not None:
        kept = even_layers(shape.num_hidden_layers, section.layers)
        if getattr(shape, "layer_types", None):
            shape.layer_types = [shape.layer_types[i] for i in kept]
        shape.num_hidden_layers = section.layers
    return shape


def _tokens(text: str) -> int:
    return -(-len(text.encode()) // _UTF8_BYTES_PER_TOKEN)
