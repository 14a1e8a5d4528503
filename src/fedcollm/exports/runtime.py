"""Models that another library computes, in the form in which modalities ask a network of transformers.

A modality scores such a model by the very code that scores the source. A causal language model reads one sequence at a
time, and keeps what it computed for the tokens with which the next sequence begins too: the choices of an example
follow one another, and share their prompt.
"""

from collections.abc import Sequence
from itertools import takewhile
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Runtime(nn.Module):
    """A model that another library computes, on the CPU, in float32.

    Attributes:
        place: a parameter that says so to whoever asks for the model's device and dtype.
        config: the configuration of a type that no table of architectures has.
    """

    def __init__(self) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.place: nn.Parameter = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.config: SimpleNamespace = SimpleNamespace(model_type="exported")


class TokenRuntime(Runtime):
    """A causal language model that another library computes; a subclass says how, in `extend`."""

    def __init__(self) -> None:
        super().__init__()
        self.generation_config: Any = None  # as transformers' models have one
        self._tokens: list[int] = []
        self._rows = torch.zeros(0, 0)
        self._first = 0  # column of the first row that is kept

    def extend(self, known: int, tokens: Sequence[int]) -> Tensor:
        """Return [len(tokens), V] logits of tokens that follow the first `known` ones of the sequence before."""
        raise NotImplementedError

    def forward(self, input_ids: Tensor, logits_to_keep: int = 0, **options: Any) -> SimpleNamespace:
        """Return the logits [1, R, V] of the last R tokens of a sequence.

        Args:
            input_ids: [1, N] int64, the sequence.
            logits_to_keep: R; 0 for all of them.
            options: options of transformers' models, which change nothing here.
        """
        tokens: list[int] = input_ids[0].tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        first = len(tokens) - logits_to_keep if logits_to_keep else 0
        pairs = zip(tokens, self._tokens, strict=False)
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if known == len(tokens) and first >= self._first:  # nothing is new, as for another choice of one token
            return SimpleNamespace(logits=self._rows[first - self._first : known - self._first][None])
        known = min(known, len(tokens) - 1)
        if first < min(self._first, known):  # rows are needed that were not kept
            known = first
        rows = self.extend(known, tokens[known:])
        if first < known:
            rows = torch.cat([self._rows[first - self._first : known - self._first], rows])
        else:
            rows = rows[first - known :]
        self._tokens, self._rows, self._first = tokens, rows, first
        return SimpleNamespace(logits=rows[None])

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, generation_config: Any, logits_processor: Any
    ) -> Tensor:
        """Return a prompt and the likeliest next tokens, [1, N], as transformers' models do without sampling."""
        tokens, stops = input_ids, set[int](generation_config.eos_token_id or ())
        for _ in range(generation_config.max_new_tokens):
            scores = logits_processor(tokens, self(tokens, logits_to_keep=1).logits[:, -1])
            tokens = torch.cat([tokens, scores.argmax(-1, keepdim=True)], dim=1)
            if int(tokens[0, -1]) in stops:
                break
        return tokens
