"""One batch in every form that a causal language model can read it in, and the forward passes that do so."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from benchmarks.gpu.device import device
from fedcollm.modalities.text.forward import _additive_mask, _causal, _kept

#: Name of `varlen_attention` among transformers' implementations.
VARLEN = "benchmark_varlen"

#: What `varlen_attention` needs to know of the batch, as transformers hands it nothing of the kind.
_sequences: dict[str, Any] = {}


class Forms:
    """A batch on the device, with everything that needs a look at its values decided beforehand.

    Args:
        task: collates.
        examples: of the batch, B.

    Attributes:
        inputs: as `pad_left` makes them, each [B, N].
        targets: [P] int64, what each supervised row should predict.
        tokens: T, without padding.
        columns: N.
    """

    def __init__(self, task: Any, examples: list[Any]):
        batch = task.collate(examples)
        self.inputs = {name: tensor.to(device()) for name, tensor in batch.inputs.items()}
        self.targets, rows = batch.targets.to(device()), batch.rows.to(device())
        self._mask = self.inputs["attention_mask"].bool()
        self.columns, self.tokens = self._mask.shape[1], int(self._mask.sum())
        self.added = _additive_mask(_causal(self._mask), torch.bfloat16)
        self.kept = torch.arange(-rows.shape[1], 0, device=device())
        self.rows = rows.flatten().nonzero().squeeze(1)
        self._lengths, self._supervised = self._mask.sum(1).tolist(), rows.sum(1).tolist()
        self.packed, self.packed_inputs = self._pack(rows)
        self.right, self.right_rows = self._pad_right()
        self.flat_inputs = self._alone(self._mask.flatten().nonzero().squeeze(1))
        ends = [sum(self._lengths[: i + 1]) for i in range(len(self._lengths))]
        self.flat_rows = self._last_rows(ends)
        self.limits = torch.tensor([0, *ends], dtype=torch.int32, device=device())

    def attend_to_sequences(self) -> None:
        """Let `varlen_attention` know where this batch's sequences begin and end."""
        _sequences.update(limits=self.limits, longest=max(self._lengths))

    def _pack(self, rows: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return the places of tokens among all and of read rows among those; and tokens and positions."""
        index = _kept(self._mask.flatten())
        read = torch.zeros_like(self._mask)
        read[:, self.columns - rows.shape[1] :] = rows
        return (index, read.flatten()[index].nonzero().squeeze(1)), self._alone(index)

    def _alone(self, index: Tensor) -> tuple[Tensor, Tensor]:
        tokens, positions = (self.inputs[name].flatten()[index][None] for name in ("input_ids", "position_ids"))
        return tokens, positions

    def _pad_right(self) -> tuple[Tensor, Tensor]:
        tokens = torch.zeros_like(self.inputs["input_ids"])
        for i, length in enumerate(self._lengths):
            tokens[i, :length] = self.inputs["input_ids"][i, self.columns - length :]
        return tokens, self._last_rows([i * self.columns + length for i, length in enumerate(self._lengths)])

    def _last_rows(self, ends: list[int]) -> Tensor:
        """Return the places of the supervised rows, which are the last ones before each end."""
        places = [range(end - count, end) for end, count in zip(ends, self._supervised, strict=True)]
        return torch.tensor([place for some in places for place in some], device=device())


def left_padded(model: Any, forms: Forms) -> Tensor:
    """Return [P, V] from all columns, with a mask that is added to the scores."""
    inputs = forms.inputs | {"attention_mask": forms.added}
    logits = model(**inputs, use_cache=False, logits_to_keep=forms.kept).logits
    return logits.flatten(0, 1).index_select(0, forms.rows)


def packed(model: Any, forms: Forms) -> Tensor:
    """Return [P, V] from the tokens alone, as the product does with grouped attention."""
    tokens, positions = forms.packed_inputs
    return model(tokens, forms.added, position_ids=positions, packed=forms.packed, use_cache=False).logits[0]


def causal(model: Any, forms: Forms) -> Tensor:
    """Return [P, V] from columns that are padded on the right, so that causal attention needs no mask."""
    hidden = _hidden(model, {"input_ids": forms.right})
    return model.get_base_model().lm_head(hidden.flatten(0, 1).index_select(0, forms.right_rows))


def flat(model: Any, forms: Forms) -> Tensor:
    """Return [P, V] from the tokens of all sequences in one row, for `varlen_attention`."""
    forms.attend_to_sequences()
    tokens, positions = forms.flat_inputs
    hidden = _hidden(model, {"input_ids": tokens, "position_ids": positions})
    return model.get_base_model().lm_head(hidden[0].index_select(0, forms.flat_rows))


def _hidden(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    return model.get_base_model().model(**inputs, attention_mask=None, use_cache=False).last_hidden_state


def varlen_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    """Transformers' interface to torch's attention over sequences of different lengths, on a GPU only.

    Args:
        module: the layer's attention.
        query: [1, H, T, d], the tokens of all sequences.
        key: [1, H / g, T, d], and value alike.
        value: see key.
        mask: none.
        scaling: of the scores.
    """
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))  # [T, h, d]
    limits, longest = _sequences["limits"], _sequences["longest"]
    output = varlen_attn(q, k, v, limits, limits, longest, longest, scale=scaling, window_size=(-1, 0))
    return output[None], None


AttentionInterface.register(VARLEN, varlen_attention)
