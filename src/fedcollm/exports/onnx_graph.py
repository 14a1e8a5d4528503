"""Networks as ONNX needs them: tensors in, tensors out, under names, with dimensions that may change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedcollm.errors import UserError
from fedcollm.modalities.base import Modality
from fedcollm.modalities.text.architectures import obeys_any_mask
from fedcollm.models.pretrained import text_sizes

#: Sample sizes: at least 2, since torch takes a dimension of 1 for one that never changes; all different.
_BATCH, _LENGTH, _PAST = 2, 3, 4


@dataclass(frozen=True)
class Graph:
    """A network with samples of its inputs, ready for `torch.onnx.export`.

    Attributes:
        network: the network, which takes the inputs by their positions: three of them and `*past` if it is cached, and
            `*values` otherwise.
        inputs: name to sample.
        dynamic: name to the dimensions that may change.
        outputs: names of the outputs.
        cached: whether the inputs hold keys and values of earlier tokens (`past_...`).
    """

    network: nn.Module = field(repr=False)
    inputs: Mapping[str, Tensor] = field(repr=False)
    dynamic: Mapping[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    cached: bool = False


class _Causal(nn.Module):
    """A causal language model with a cache as plain tensors.

    Args:
        network: the model of transformers.
        layers: its number of layers, each of which has keys and values; 0 for no cache.
    """

    def __init__(self, network: nn.Module, layers: int):
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.network = network
        self.layers = layers

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the logits [B, N, V], then the keys and the values of each layer, [B, heads, P + N, d].

        Args:
            input_ids: [B, N] int64, the new tokens.
            attention_mask: [B, P + N] int64, 1 for tokens and 0 for padding.
            position_ids: [B, N] int64.
            past: the keys and the values of P earlier tokens in each layer, [B, heads, P, d].
        """
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        for layer in range(self.layers):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        known = attention_mask.shape[1] - input_ids.shape[1]
        columns = torch.arange(attention_mask.shape[1])
        rows = torch.arange(input_ids.shape[1]) + known
        seen = (columns[None] <= rows[:, None])[None, None] & attention_mask[:, None, None].bool()
        mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min / 4)
        answer = self.network(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache if self.layers else None,
            use_cache=bool(self.layers),
        )
        kept = answer.past_key_values.layers if self.layers else ()
        return (answer.logits, *(tensor for layer in kept for tensor in (layer.keys, layer.values)))


class _Named(nn.Module):
    """A network with arguments by position and tensors as outputs.

    Args:
        network: the model of transformers.
        inputs: names of its arguments.
        outputs: names of the outputs that are kept.
    """

    def __init__(self, network: nn.Module, inputs: Sequence[str], outputs: Sequence[str]):
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.network = network
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs."""
        answer = self.network(**dict(zip(self.inputs, values, strict=True)))
        return tuple(getattr(answer, name) for name in self.outputs)


def causal_graph(network: nn.Module) -> Graph:
    """Return a causal language model with a cache of keys and values.

    Raises:
        UserError: its attention does not obey a mask over pairs of columns, on which the graph is built.
    """
    model: Any = network
    model.set_attn_implementation("eager")
    shape = text_sizes(model.config)
    if not obeys_any_mask(model.config):
        raise UserError(
            f"--format onnx: the attention of a model of the type {model.config.model_type} can't be written, since "
            "its layers are not all of full attention, or it was not tested. Use --format merged."
        )
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    layers: int = shape.num_hidden_layers
    pairs = [f"{layer}_{kind}" for layer in range(layers) for kind in ("key", "value")]
    inputs = {
        "input_ids": torch.arange(_BATCH * _LENGTH).reshape(_BATCH, _LENGTH) % shape.vocab_size,
        "attention_mask": torch.ones(_BATCH, _PAST + _LENGTH, dtype=torch.int64),
        "position_ids": torch.arange(_PAST, _PAST + _LENGTH).repeat(_BATCH, 1),
    } | {f"past_{pair}": torch.zeros(_BATCH, heads, _PAST, width) for pair in pairs}
    dynamic = {name: (0, 2) if name.startswith("past") else (0, 1) for name in inputs}
    outputs = ("logits", *(f"present_{pair}" for pair in pairs))
    return Graph(_Causal(network, layers), inputs, dynamic, outputs, cached=True)


def recorded_graph(network: nn.Module, modality: Modality, examples: Sequence[Any]) -> Graph:
    """Return a network of images or recordings, with the inputs that its modality gives it.

    Args:
        network: the network.
        modality: makes its inputs.
        examples: at least two examples.

    Raises:
        UserError: the modality asks the network for more than one forward pass, as Whisper's does.
    """
    calls: list[dict[str, Any]] = []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any], answer: Any) -> None:
        calls.append({"inputs": kwargs, "outputs": answer})

    hook = cast(Any, network).register_forward_hook(note, with_kwargs=True)
    with torch.no_grad():
        modality.logits(network, modality.collate(examples[:_BATCH]))
    hook.remove()
    inputs: dict[str, Any] = calls[0]["inputs"] if len(calls) == 1 else {}
    if not inputs or not all(isinstance(value, Tensor) for value in inputs.values()):
        raise UserError(
            f"--format onnx: the model of {modality.name} is no single forward pass from tensors to logits (an encoder "
            "with a decoder, for one, is none). Use --format merged."
        )
    outputs = tuple(name for name in ("logits", "pred_boxes") if getattr(calls[0]["outputs"], name, None) is not None)
    dynamic = {name: (0, 1) if name == "input_values" and value.dim() == 2 else (0,) for name, value in inputs.items()}
    dynamic = {name: (0, 1) if "mask" in name and value.dim() == 2 else dynamic[name] for name, value in inputs.items()}
    return Graph(_Named(network, tuple(inputs), outputs), inputs, dynamic, outputs)
