"""Sequences through a causal language model, and only what is needed of what comes out.

Inputs are padded on the left, so that every sequence ends at the last column and the head can be asked for the last few
columns only. A model that reads packed tokens (`models/fused/patch.py`) is given no padding at all, and its head sees
nothing but the rows that are read.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Tokens = tuple[int, ...]

#: Packed tokens are filled up to a multiple of this with padding, if there is any: oneDNN compiles and keeps its
#: products anew for every number of rows, some 10 MB for the layers of one model.
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
    """Return [P, V] in the model's dtype: one row for each of `rows` that is true, sequence by sequence.

    Args:
        model: a causal language model of transformers, or around one.
        inputs: as `pad_left` makes them.
        rows: [B, R] bool, which of the last R columns are read; none of them is padding.
        seen: [B, N, N] bool, what each column attends to; None: those before it and itself.
    """
    parameter = next(model.parameters())
    reads_packed = getattr(model, "reads_packed", None)
    inputs = {name: tensor.to(parameter.device) for name, tensor in inputs.items()}
    rows = rows.to(parameter.device)
    if reads_packed is not None and reads_branches(model) and reads_packed(inputs["input_ids"].shape[1]):
        return _packed(model, inputs, rows, seen, parameter.dtype)
    mask = inputs["attention_mask"].bool()
    if seen is None and reads_branches(model) and not mask.all():
        seen = _before(mask)
    if seen is not None:
        # finite numbers, not a mask of true and false; this does not cure the NaN that torch's attention by cuDNN gives
        # on a GPU where the columns are 64 modulo 128: not yet cured (decision 9)
        inputs["attention_mask"] = _added(seen.to(parameter.device), parameter.dtype)
    # as indices, not as a number: a slice is not contiguous, and torch would copy the head once a sequence
    kept = torch.arange(-rows.shape[1], 0, device=parameter.device)
    return model(**inputs, use_cache=False, logits_to_keep=kept).logits[rows]


def _packed(
    model: nn.Module, inputs: dict[str, Tensor], rows: Tensor, seen: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return what `logits_of` does, without padding."""
    mask = inputs["attention_mask"].bool()
    if seen is None:
        seen = _before(mask)
    index = _kept(mask.flatten())  # [T]: places of the tokens among all B N
    read = torch.zeros_like(mask)
    read[:, mask.shape[1] - rows.shape[1] :] = rows
    packed = index, read.flatten()[index].nonzero().squeeze(1)
    tokens, positions = (inputs[name].flatten()[index][None] for name in ("input_ids", "position_ids"))
    result = model(tokens, _added(seen, dtype), position_ids=positions, packed=packed, use_cache=False)
    return result.logits[0]


def _before(mask: Tensor) -> Tensor:
    """Return [B, N, N] bool, what each column attends to: those before it and itself, no padding; from [B, N]."""
    return mask[:, None, :] & mask.new_ones(mask.shape[1], mask.shape[1]).tril()


def _kept(mask: Tensor) -> Tensor:
    """Return where a mask is true, with as many other places as it takes to a multiple of `_MULTIPLE`, in order."""
    kept = mask.clone()
    kept[(~mask).nonzero().squeeze(1)[: -int(mask.sum()) % _MULTIPLE]] = True
    return kept.nonzero().squeeze(1)


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return [B, 1, N, N] to add to the scores: 0, or a number so low that its exponential is 0 beside any other.

    It is a quarter of the lowest one, which becomes infinite where a fused attention multiplies it by log₂ e, and NaN
    where a whole block of columns is hidden (pytorch/pytorch#109517). It does not keep gradients finite on a GPU where
    cuDNN computes the attention: a row of padding that sees only such numbers is what very probably triggers
    pytorch/pytorch#196678. That is not yet cured (decision 9).
    """
    return (~seen)[:, None].to(dtype) * (torch.finfo(dtype).min / 4)


def reads_branches(model: nn.Module, columns: float = math.inf) -> bool:
    """Return whether a model's attention follows a mask of its own for every pair of columns, whatever their distance.

    Args:
        model: a causal language model of transformers, or around one.
        columns: no sequence is longer; a window that wide hides nothing.
    """
    config = getattr(model, "config", None)
    kind = getattr(config, "_attn_implementation", None) or "eager"
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return kind in ("grouped", "eager", "sdpa") and columns <= (window or math.inf)


def branch(inputs: dict[str, Tensor], branched: Sequence[Branched]) -> tuple[Tensor, Tensor]:
    """Return attention and positions of answers that share a prompt: each sees the prompt and itself, as if alone.

    Args:
        inputs: as `pad_left` makes them.
        branched: prompts and answers; in the columns stand the prompt and each answer except for its last token.

    Returns:
        [B, N, N] bool, what each column attends to; and `position_ids`, [B, N].
    """
    owner = inputs["attention_mask"] - 1  # -1: padding; 0: prompt; 1, 2, ...: the answers
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
