"""What a causal language model computes that is spread over several processes: logits, and generated tokens."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from fedcollm.modalities.text.forward import logits_of
from fedcollm.modalities.text.generation import new_tokens, plain_settings
from fedcollm.models.sharded import Operation, Spread


class TextSpread(Spread):
    """A causal language model that is spread over several processes; `logits_of` and `generate` use its methods."""

    def logits(self, inputs: Mapping[str, Tensor], rows: Tensor, seen: Tensor | None) -> Tensor:
        """Return what `logits_of` returns for the same arguments."""
        tensors = {**inputs, "rows": rows} | ({} if seen is None else {"seen": seen})
        return self.rows("logits", tensors, cast(Any, rows.sum(1)).tolist())

    def tokens(self, inputs: Mapping[str, Tensor], settings: Mapping[str, Any]) -> list[list[int]]:
        """Return the new tokens of each prompt, as `new_tokens` returns them."""
        parts = self.parts("tokens", inputs, settings, [1] * len(inputs["input_ids"]))
        return [row for part in parts for row in cast(Any, part).tolist()]


def _logits(network: nn.Module, tensors: dict[str, Tensor], values: Mapping[str, Any]) -> Tensor:
    rows, seen = tensors.pop("rows"), tensors.pop("seen", None)
    return logits_of(network, tensors, rows, seen)


def _tokens(network: nn.Module, tensors: dict[str, Tensor], values: Mapping[str, Any]) -> Tensor:
    settings = {key: values[key] for key in ("limit", "stops", "columns")}
    with plain_settings(network):
        return new_tokens(network, tensors, **settings, together=True)


#: What the processes compute together, by the name of the request.
OPERATIONS: Mapping[str, Operation] = {"logits": _logits, "tokens": _tokens}


def text_spread(model: Any, processes: Any, held: Sequence[int] = ()) -> TextSpread:
    """Return a causal language model as its processes use it; see `Spread`."""
    return TextSpread(model, processes, OPERATIONS, held)
