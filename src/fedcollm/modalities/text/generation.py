"""Greedy generation of free answers, in batches, by transformers."""

import contextlib
from collections.abc import Collection, Generator, Sequence
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedcollm.modalities.text.architectures import caches, tolerates_padding
from fedcollm.modalities.text.forward import Tokens, pad_left


def generate(
    model: nn.Module, prompts: Sequence[Tokens], limits: Sequence[int], stops: Collection[int], columns: int
) -> list[Tokens]:
    """Return the likeliest next tokens of each prompt, one after the other, without the token that stops it.

    What a prompt gets does not depend on the rest of the batch, except for rounding. A model that padding would change
    reads one prompt at a time, and one without a cache that was tested reads the whole sequence for each token.

    Args:
        model: a causal language model of transformers in evaluation mode, or a PEFT model of one.
        prompts: the tokens of each prompt.
        limits: the largest number of new tokens of each prompt.
        stops: tokens of which each ends an answer.
        columns: number of tokens that may be generated; the model may know more.
    """
    network: Any = cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model
    order = sorted(range(len(prompts)), key=lambda i: limits[i])
    together = tolerates_padding(network.config)
    found: dict[int, Tokens] = {}
    with _plain_settings(network):
        for limit, same in groupby(order, key=lambda i: limits[i]):
            some = list(same)
            for batch in [some] if together else [[i] for i in some]:
                new = _continued(network, [prompts[i] for i in batch], limit, stops, columns)
                found |= zip(batch, new, strict=True)
    return [found[i] for i in range(len(prompts))]


def _continued(
    network: Any, prompts: Sequence[Tokens], limit: int, stops: Collection[int], columns: int
) -> list[Tokens]:
    from transformers import GenerationConfig, LogitsProcessorList

    inputs, device = pad_left(prompts, 0), next(network.parameters()).device
    given = {name: inputs[name].to(device) for name in ("input_ids", "attention_mask")}
    processor = cast(Any, LogitsProcessorList)([_Columns(columns)])

    def made(cached: bool) -> Tensor:
        settings: Any = GenerationConfig(
            do_sample=False, max_new_tokens=limit, eos_token_id=sorted(stops) or None, pad_token_id=0, use_cache=cached
        )
        return network.generate(**given, generation_config=settings, logits_processor=processor)

    try:
        tokens = made(caches(network.config))
    except ValueError:  # as from transformers' cache for a hybrid model that has no layer of attention
        tokens = made(False)
    new: list[list[int]] = cast(Any, tokens[:, given["input_ids"].shape[1] :]).tolist()
    return [_stopped(row, stops) for row in new]


class _Columns:
    """Keeps a model from generating tokens that not both models of a run know."""

    def __init__(self, columns: int):
        self._columns = columns

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """Return [B, V] scores, of which the last ones are -∞."""
        if scores.shape[1] > self._columns:
            scores = scores.clone()
            scores[:, self._columns :] = -torch.inf
        return scores


def _stopped(tokens: list[int], stops: Collection[int]) -> Tokens:
    at = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return tuple(tokens[:at])


@contextlib.contextmanager
def _plain_settings(network: Any) -> Generator[None, None, None]:
    """Set a model's own settings of generation aside, such as a penalty for repetition."""
    from transformers import GenerationConfig

    own = network.generation_config
    network.generation_config = GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = own
