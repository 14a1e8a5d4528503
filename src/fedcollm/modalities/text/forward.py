"""Forward passes of a causal language model that compute logits only for the rows that are needed.

Inputs are padded on the left, so that every sequence ends at the last column and the head needs to see only the last
few columns. A model that accepts packed tokens (`models/fused/patch.py`) gets no padding at all, and its head sees only
the rows that are needed.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedcollm.modalities.text.architectures import obeys_any_mask, tolerates_padding

Tokens = tuple[int, ...]

#: The number of packed tokens is rounded up to a multiple of this by keeping some padding, if there is any. oneDNN
#: compiles its products for each number of rows and caches them, about 10 MB for the layers of one model.
_MULTIPLE = 16

#: A prompt and several answers to it.
Branched = tuple[Tokens, list[Tokens]]


def pad_left(sequences: Sequence[Tokens], padding: int) -> dict[str, Tensor]:
    """Return `input_ids`, `attention_mask` and `position_ids`, each [B, N] int64, padded on the left."""
    width = max(map(len, sequences))
    tokens = torch.full((len(sequences), width), padding)
    mask = torch.zeros_like(tokens)
    for i, sequence in enumerate(sequences):
        tokens[i, width - len(sequence) :] = torch.tensor(sequence)
        mask[i, width - len(sequence) :] = 1
    return {"input_ids": tokens, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def logits_of(model: nn.Module, inputs: dict[str, Tensor], rows: Tensor, seen: Tensor | None = None) -> Tensor:
    """Return [P, V] logits in the model's dtype: one row for each true value of `rows`, sequence by sequence.

    Args:
        model: a causal language model of transformers, or a wrapper of one; it may be spread over several processes.
        inputs: inputs from `pad_left`.
        rows: [B, R] bool, which of the last R columns are needed; none of these is padding.
        seen: [B, N, N] bool, which columns each column attends to; None for causal attention.
    """
    if (spread := getattr(model, "spread", None)) is not None:
        return spread.logits(inputs, rows, seen)
    if not tolerates_padding(model.config):
        return _one_by_one(model, inputs, rows)
    parameter = next(model.parameters())
    reads_packed = getattr(model, "reads_packed", None)
    inputs = {name: tensor.to(parameter.device) for name, tensor in inputs.items()}
    rows = rows.to(parameter.device)
    if reads_packed is not None and reads_branches(model) and reads_packed(inputs["input_ids"].shape[1]):
        return _packed(model, inputs, rows, seen, parameter.dtype)
    mask = inputs["attention_mask"].bool()
    if seen is None and reads_branches(model) and not mask.all():
        seen = _causal(mask)
    if seen is not None:
        # An additive mask of finite numbers instead of a boolean one. It does not cure the NaN that attention by
        # cuDNN gives on a GPU where the columns are 64 modulo 128: not yet cured (decision 9).
        inputs["attention_mask"] = _additive_mask(seen.to(parameter.device), parameter.dtype)
    # indices instead of a number, because a slice is not contiguous, and torch would copy the head for each sequence
    kept = torch.arange(-rows.shape[1], 0, device=parameter.device)
    return model(**inputs, use_cache=False, logits_to_keep=kept).logits[rows]


def _one_by_one(model: nn.Module, inputs: dict[str, Tensor], rows: Tensor) -> Tensor:
    """Return the same as `logits_of`, from one forward pass per sequence, for models that padding would change."""
    device, parts = next(model.parameters()).device, list[Tensor]()
    for tokens, mask, needed in zip(inputs["input_ids"], inputs["attention_mask"].bool(), rows, strict=True):
        sequence = tokens[mask][None].to(device)
        kept = min(len(needed), sequence.shape[1])
        parts.append(_last_logits(model, sequence, kept)[needed[-kept:].to(device)])
    return torch.cat(parts)


def _last_logits(model: nn.Module, sequence: Tensor, kept: int) -> Tensor:
    """Return the logits of the last columns of one sequence, [kept, V]."""
    network: Any = cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model
    options = {"logits_to_keep": kept} if "logits_to_keep" in inspect.signature(network.forward).parameters else {}
    return model(sequence, use_cache=False, **options).logits[0, -kept:]


def _packed(
    model: nn.Module, inputs: dict[str, Tensor], rows: Tensor, seen: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return the same as `logits_of`, computed without padding."""
    mask = inputs["attention_mask"].bool()
    if seen is None:
        seen = _causal(mask)
    index = _kept(mask.flatten())  # [T], positions of the tokens among all B N
    read = torch.zeros_like(mask)
    read[:, mask.shape[1] - rows.shape[1] :] = rows
    packed = index, read.flatten()[index].nonzero().squeeze(1)
    tokens, positions = (inputs[name].flatten()[index][None] for name in ("input_ids", "position_ids"))
    mask = _additive_mask(seen, dtype)
    result = model(tokens, mask, position_ids=positions, packed=packed, use_cache=False)
    return result.logits[0]


def _causal(mask: Tensor) -> Tensor:
    """Return [B, N, N] bool, the causal attention for a [B, N] mask: earlier columns and the own one, no padding."""
    return mask[:, None, :] & mask.new_ones(mask.shape[1], mask.shape[1]).tril()


def _kept(mask: Tensor) -> Tensor:
    """Return the sorted positions where a mask is true, plus the first others that make a multiple of `_MULTIPLE`."""
    kept = mask.clone()
    kept[(~mask).nonzero().squeeze(1)[: -int(mask.sum()) % _MULTIPLE]] = True
    return kept.nonzero().squeeze(1)


def _additive_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return [B, 1, N, N] to add to the attention scores: 0, or a number so low that the softmax weight becomes 0.

    The low number is a quarter of the lowest one of the dtype. The lowest one itself would overflow in a fused
    attention that multiplies it by log₂ e, and give NaN where a whole block of columns is hidden
    (pytorch/pytorch#109517). It does not keep gradients finite on a GPU where cuDNN computes the attention: a row of
    padding that attends only to such numbers is very probably what triggers pytorch/pytorch#196678. That is not yet
    cured (decision 9).
    """
    return (~seen)[:, None].to(dtype) * (torch.finfo(dtype).min / 4)


def reads_branches(model: nn.Module, columns: float = math.inf) -> bool:
    """Return whether a model's attention obeys an arbitrary mask over all pairs of columns.

    Args:
        model: a causal language model of transformers, or a wrapper of one.
        columns: length of the longest sequence. A sliding window that is at least as long hides nothing.
    """
    return obeys_any_mask(model.config, columns)


def branch(inputs: dict[str, Tensor], branched: Sequence[Branched]) -> tuple[Tensor, Tensor]:
    """Return the attention and the positions for answers that share a prompt. Each attends to the prompt and itself.

    Args:
        inputs: inputs from `pad_left`, whose columns hold each prompt and then its answers without their last tokens.
        branched: the prompts and their answers.

    Returns:
        [B, N, N] bool, which columns each column attends to, and `position_ids` [B, N].
    """
    owner = inputs["attention_mask"] - 1  # -1 for padding, 0 for the prompt, 1, 2, ... for the answers
    positions = inputs["position_ids"].clone()
    for i, (prompt, answers) in enumerate(branched):
        column = owner.shape[1] - sum(len(answer) - 1 for answer in answers)
        for number, answer in enumerate(answers, start=1):
            here = slice(column, column + len(answer) - 1)
            owner[i, here] = number
            positions[i, here] = torch.arange(len(prompt), len(prompt) + len(answer) - 1)
            column = here.stop
    queries, keys = owner[:, :, None], owner[:, None, :]  # [B, N, 1], [B, 1, N]
    return ((keys == queries) | (keys == 0)).tril(), positions
