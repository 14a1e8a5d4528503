"""Greedy generation of free answers, in batches, by transformers."""

import contextlib
from collections.abc import Collection, Generator, Mapping, Sequence
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
    spread, found = getattr(model, "spread", None), dict[int, Tokens]()
    with plain_settings(network):
        for limit, same in groupby(order, key=lambda i: limits[i]):
            some = list(same)
            settings: dict[str, Any] = {"limit": limit, "stops": sorted(stops), "columns": columns}
            for batch in [some] if together else [[i] for i in some]:
                padded = pad_left([prompts[i] for i in batch], 0)
                inputs = {name: padded[name] for name in ("input_ids", "attention_mask")}
                if spread is not None:
                    new = spread.tokens(inputs, settings)
                else:
                    new = cast(Any, new_tokens(network, inputs, **settings)).tolist()
                found |= zip(batch, (_stopped(row, stops) for row in new), strict=True)
    return [found[i] for i in range(len(prompts))]


def new_tokens(
    network: Any, inputs: Mapping[str, Tensor], limit: int, stops: Sequence[int], columns: int, together: bool = False
) -> Tensor:
    """Return the likeliest next tokens, [B, new]; those after a token that stops a row mean nothing.

    Args:
        network: a causal language model of transformers.
        inputs: `input_ids` and `attention_mask` of the prompts, each [B, N], padded on the left.
        limit: the largest number of new tokens.
        stops: tokens of which each ends an answer.
        columns: number of tokens that may be generated.
        together: whether several processes hold the network, and take as many steps as the slowest of them.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    device = next(network.parameters()).device
    given = {name: tensor.to(device) for name, tensor in inputs.items()}
    processor = cast(Any, LogitsProcessorList)([_Columns(columns)])

    def made(cached: bool) -> Tensor:
        settings: Any = GenerationConfig(
            do_sample=False, max_new_tokens=limit, eos_token_id=list(stops) or None, pad_token_id=0, use_cache=cached
        )
        return network.generate(
            **given, generation_config=settings, logits_processor=processor, synced_gpus=together or None
        )

    try:
        tokens = made(caches(network.config))
    except ValueError:  # as from transformers' cache for a hybrid model that has no layer of attention
        tokens = made(False)
    return tokens[:, given["input_ids"].shape[1] :]


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
def plain_settings(network: Any) -> Generator[None, None, None]:
    """Set a model's own settings of generation aside, such as a penalty for repetition."""
    from transformers import GenerationConfig

    own = network.generation_config
    network.generation_config = GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = own
