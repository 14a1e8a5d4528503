"""Make a PEFT model fast: compute layers that share an input together, and each half of a layer as one step.

No parameter changes its name, its shape or its dtype. A module that is made fast gets another `forward`, and nothing
else.
"""

import contextlib
import functools
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedcollm.memory import give_back
from fedcollm.models.fused.layers import AttentionHalf, MlpHalf, normalize, normalize_backward
from fedcollm.models.fused.lora import ADAPTER, LoraStack, product

_QKV, _GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")

#: Names of children of one module that are called with the same input.
SIBLINGS: tuple[tuple[str, ...], ...] = (_QKV, ("query", "key", "value"), _GATE_UP)

#: Class of attention, or its name within a transformer layer, to the layers that share an input, if not all do. A stack
#: of layers with two inputs would compute all of them for each. DETR adds positions to what q and k read.
_APART: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "DetrSelfAttention": (("q_proj", "k_proj"),),
    "DetrCrossAttention": (),
    "encoder_attn": (("k_proj", "v_proj"),),
}

#: Classes of transformers that multiply the output of `normalize` by their weight w; Gemma's multiply it by 1 + w.
_RMS_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")

#: Classes of transformers that consist of attention and an MLP, each after a norm and with a residual connection.
_PRE_NORM_LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")

#: After so many bytes of weights were copied into stacks, the memory of the originals is given back.
_REPLACED_BYTES = 2**25

#: Classes that compute silu(x) = x / (1 + exp(-x)).
_SILU = ("SiLU", "SiLUActivation")


def fuse(model: Any) -> None:
    """Make the forward and backward passes of a PEFT model fast.

    This changes LoRA layers on plain linear layers, without dropout and without variants such as DoRA; root-mean-square
    norms; the LM head; and transformer layers that consist of these. Any other module stays as it is. If all layers
    qualify, the model gets a method `reads_packed(columns)`, which says whether it takes tokens without padding.

    Args:
        model: a PEFT model, changed in place.
    """
    stacks = _stack_lora_layers(model)
    for module in list(model.modules()):
        if type(module).__name__ in _RMS_NORMS and not module.weight.requires_grad:
            module.forward = functools.partial(_normalize, module)
    _fuse_layers(model, stacks)
    _copy_unstacked(model, [layer.base_layer.weight for layer in stacks])
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if type(head) is nn.Linear and cast(Any, head).bias is None and not head.weight.requires_grad:
        vars(head)["forward"] = functools.partial(_head, head)
    give_back()  # what the replaced weights leave behind: 200 MB of 580


def _stack_lora_layers(model: Any) -> dict[Any, LoraStack]:
    """Stack the LoRA layers that qualify; return the stack of each layer."""
    stacks: dict[Any, LoraStack] = {}
    replaced = 0
    for name, parent in list(model.named_modules()):
        for layers in _groups(parent, name.rpartition(".")[2]):
            stack = LoraStack(layers)
            stacks.update(dict.fromkeys(layers, stack))
            for member, layer in enumerate(layers):
                layer.forward = functools.partial(stack.output, member)
            replaced += stack.matrix.nbytes
            if replaced > _REPLACED_BYTES:
                give_back()
                replaced = 0
    return stacks


def _fuse_layers(model: Any, stacks: dict[Any, LoraStack]) -> None:
    """Fuse the halves of transformer layers that qualify, and add `reads_packed` if all of them do."""
    layers = [module for module in model.modules() if type(module).__name__ in _PRE_NORM_LAYERS]
    halves = [(_attention_half(layer, stacks), _mlp_half(layer, stacks)) for layer in layers]
    for layer, pair in zip(layers, halves, strict=True):
        layer.forward = _FusedLayer(layer, layer is layers[-1], *pair)
    whole = [(attention, mlp) for attention, mlp in halves if attention is not None and mlp is not None]
    if layers and len(whole) == len(layers):
        model.reads_packed = functools.partial(_reads_packed, layers, whole)


def _copy_unstacked(model: nn.Module, stacked: Iterable[nn.Parameter]) -> None:
    """Copy the frozen weights that are in no stack, so that the file that they were mapped from leaves memory."""
    done = {id(weight) for weight in stacked}
    for parameter in model.parameters():
        kept = parameter.requires_grad or not parameter.is_floating_point()  # the latter are quantized, not mapped
        if not kept and parameter.device.type == "cpu" and id(parameter) not in done:
            parameter.data = parameter.data.clone()


def _groups(parent: nn.Module, name: str) -> Iterable[list[Any]]:
    """Yield the children that one stack can hold, given a module and its name: siblings together, all others alone."""
    children: dict[str, Any] = {key: child for key, child in parent.named_children() if _qualifies(child)}
    for names in _APART.get(type(parent).__name__, _APART.get(name, SIBLINGS)):
        layers = [children.get(name) for name in names]
        if all(layer is not None and _alike(layer, layers[0]) for layer in layers):
            yield [children.pop(name) for name in names]
    yield from ([child] for child in children.values())


def _qualifies(layer: Any) -> bool:
    from peft.tuners.lora.layer import Linear as LoraLinear  # takes seconds

    if type(layer) is not LoraLinear or type(layer.base_layer) is not nn.Linear:
        return False
    lora = cast(Any, layer)
    if list(lora.r) != [ADAPTER]:
        return False
    dropout = not isinstance(lora.lora_dropout[ADAPTER], nn.Identity)
    if dropout or lora.lora_variant or lora.lora_bias[ADAPTER]:
        return False
    return not any(p.requires_grad for p in lora.base_layer.parameters())


def _alike(layer: Any, first: Any) -> bool:
    return (
        layer.base_layer.in_features == first.base_layer.in_features
        and layer.base_layer.weight.dtype == first.base_layer.weight.dtype
        and layer.scaling == first.scaling
    )


def _common(stacks: dict[Any, LoraStack], module: Any, names: tuple[str, ...]) -> LoraStack | None:
    """Return the stack that holds exactly these children of a module; None if there is no such stack."""
    layers = [getattr(module, name) for name in names]
    stack = stacks.get(layers[0])
    return stack if stack is not None and stack.layers == layers else None


def _attention_half(layer: Any, stacks: dict[Any, LoraStack]) -> AttentionHalf | None:
    module, norm = layer.self_attn, layer.input_layernorm
    first, last = _common(stacks, module, _QKV), _common(stacks, module, ("o_proj",))
    if first is None or last is None or norm.weight.requires_grad or hasattr(module, "q_norm"):
        return None
    return AttentionHalf(norm, module, first, last)


def _mlp_half(layer: Any, stacks: dict[Any, LoraStack]) -> MlpHalf | None:
    module, norm = layer.mlp, layer.post_attention_layernorm
    first, last = _common(stacks, module, _GATE_UP), _common(stacks, module, ("down_proj",))
    if first is None or last is None or norm.weight.requires_grad or type(module.act_fn).__name__ not in _SILU:
        return None
    return MlpHalf(norm, module, first, last)


@dataclass(frozen=True, eq=False)
class _FusedLayer:
    """What replaces the `forward` of a transformer layer.

    Attributes:
        layer: the transformer layer.
        last: whether it is the last one of the model.
        attention: its first half; None if that does not qualify.
        mlp: its second half; None if that does not qualify.
    """

    layer: Any
    last: bool
    attention: AttentionHalf | None
    mlp: MlpHalf | None

    def __call__(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: Any = None,
        packed: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the layer's output, in the shape of x.

        Args:
            x: [B, N, H]; if packed, the tokens alone, [1, T, H].
            attention_mask: [B, 1, N, N], added to the scores.
            position_embeddings: cosines and sines of the rotary positions.
            packed: the places of the tokens among the B N places, [T], and the positions among the tokens whose output
                is needed, [P]. The MLP of the last layer computes and returns those only, [1, P, H]. The model must
                have said that it `reads_packed`.
            kwargs: further arguments of the layer, such as `past_key_values`.
        """
        if packed is not None and self.attention is not None and self.mlp is not None:
            x = self.attention(x, attention_mask, position_embeddings, packed[0])
            return self.mlp(x[:, packed[1]] if self.last else x)
        cached = kwargs.get("past_key_values") is not None
        if self.attention and not cached and self.attention.suits(x.shape[1]) and self.attention.takes(x.dtype):
            x = self.attention(x, attention_mask, position_embeddings)
        else:
            kwargs |= {"attention_mask": attention_mask, "position_embeddings": position_embeddings}
            x = x + self.layer.self_attn(hidden_states=self.layer.input_layernorm(x), **kwargs)[0]
        if self.mlp and self.mlp.takes(x.dtype):
            return self.mlp(x)
        return x + self.layer.mlp(self.layer.post_attention_layernorm(x))


def _reads_packed(layers: Sequence[Any], halves: Sequence[tuple[AttentionHalf, MlpHalf]], columns: int) -> bool:
    """Return whether the model now takes sequences of N columns as their tokens alone, with the argument `packed`."""
    dtype = halves[0][0].norm.weight.dtype
    return all(
        "forward" in vars(layer) and attention.suits(columns) and attention.takes(dtype) and mlp.takes(dtype)
        for layer, (attention, mlp) in zip(layers, halves, strict=True)
    )


class _RmsNorm(torch.autograd.Function):
    """w x / √(mean(x²) + ε) with a frozen w; its statistics are computed in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        normal, inverse = normalize(x, epsilon)
        ctx.save_for_backward(normal, inverse, weight)
        return normal * weight

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None]:
        normal, inverse, weight = ctx.saved_tensors
        return normalize_backward(grad_outputs[0] * weight, normal, inverse), None, None


def _normalize(norm: Any, x: Tensor) -> Tensor:
    return cast(Any, _RmsNorm).apply(x, norm.weight, norm.variance_epsilon)


class _FrozenLinear(torch.autograd.Function):
    """x Wᵀ with a frozen W: the LM head."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight, ctx.shape = weight, x.shape
        return product(x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        gradient: Tensor = grad_outputs[0]
        return product(gradient.reshape(-1, gradient.shape[-1]), ctx.weight.t()).view(ctx.shape), None


def _head(head: nn.Linear, x: Tensor) -> Tensor:
    return cast(Any, _FrozenLinear).apply(x, head.weight)


@contextlib.contextmanager
def unfused(model: nn.Module) -> Generator[None, None, None]:
    """Let every module compute with the `forward` of its own class, as hooks on single layers require."""
    replaced = {module: vars(module).pop("forward") for module in model.modules() if "forward" in vars(module)}
    try:
        yield
    finally:
        for module, forward in replaced.items():
            vars(module)["forward"] = forward
