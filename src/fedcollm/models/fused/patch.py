"""What makes a PEFT model fast: layers that share an input as one matrix, halves of a layer as one step each.

No parameter changes its name, shape or dtype; a module that is made fast gets another `forward`, nothing else.
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from fedcollm.models.fused.layers import AttentionHalf, MlpHalf, normalise_backward, normalize
from fedcollm.models.fused.lora import ADAPTER, LoraStack, product

_QKV, _GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")

#: Children of one module that are called with the same input.
SIBLINGS = (_QKV, ("query", "key", "value"), _GATE_UP)

#: transformers' classes with the formula of `normalize` times w; Gemma's multiplies by 1 + w.
_RMS_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")

#: transformers' layers of attention and MLP, each after a norm and with a residual, and nothing else.
_PRE_NORM_LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")

#: Classes of silu(x) = x / (1 + exp(-x)).
_SILU = ("SiLU", "SiLUActivation")


def fuse(model: Any) -> None:
    """Make a PEFT model's forward and backward passes fast; a module that doesn't qualify stays as it is.

    Those are LoRA layers without dropout and variants on plain linear layers, root-mean-square norms, the LM head, and
    whole layers. If all layers qualify, `model.reads_packed(N)` tells whether it takes tokens without padding.
    """
    stacks: dict[Any, LoraStack] = {}  # by layer
    for parent in list(model.modules()):
        for layers in _groups(parent):
            stack = LoraStack(layers)
            stacks.update(dict.fromkeys(layers, stack))
            for member, layer in enumerate(layers):
                layer.forward = functools.partial(stack.output, member)
        if type(parent).__name__ in _RMS_NORMS and not parent.weight.requires_grad:
            parent.forward = functools.partial(_normalize, parent)
    layers = [module for module in model.modules() if type(module).__name__ in _PRE_NORM_LAYERS]
    halves = [(_attention_half(layer, stacks), _mlp_half(layer, stacks)) for layer in layers]
    for layer, pair in zip(layers, halves, strict=True):
        layer.forward = functools.partial(_layer, layer, layer is layers[-1], *pair)
    whole = [(attention, mlp) for attention, mlp in halves if attention is not None and mlp is not None]
    if layers and len(whole) == len(layers):
        model.reads_packed = functools.partial(_reads_packed, layers, whole)
    _copy_the_rest(model, [layer.base_layer.weight for layer in stacks])
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad:
        vars(head)["forward"] = functools.partial(_head, head)


def _copy_the_rest(model: nn.Module, copied: Iterable[nn.Parameter]) -> None:
    """Copy what is not in a stack, so that no weight keeps the file that it was mapped from resident."""
    done = {id(weight) for weight in copied}
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.device.type == "cpu" and id(parameter) not in done:
            parameter.data = parameter.data.clone()


def _groups(parent: nn.Module) -> Iterable[list[Any]]:
    """Children that can be one matrix, siblings together and others alone."""
    children: dict[str, Any] = {name: child for name, child in parent.named_children() if _qualifies(child)}
    for names in SIBLINGS:
        layers = [children.get(name) for name in names]
        if all(layer is not None and _alike(layer, layers[0]) for layer in layers):
            yield [children.pop(name) for name in names]
    yield from ([child] for child in children.values())


def _qualifies(layer: Any) -> bool:
    if type(layer) is not LoraLinear or type(layer.base_layer) is not nn.Linear or list(layer.r) != [ADAPTER]:
        return False
    plain = (
        isinstance(layer.lora_dropout[ADAPTER], nn.Identity) and not layer.lora_variant and not layer.lora_bias[ADAPTER]
    )
    return plain and not any(p.requires_grad for p in layer.base_layer.parameters())


def _alike(layer: Any, first: Any) -> bool:
    return (
        layer.base_layer.in_features == first.base_layer.in_features
        and layer.base_layer.weight.dtype == first.base_layer.weight.dtype
        and layer.scaling == first.scaling
    )


def _common(stacks: dict[Any, LoraStack], module: Any, names: tuple[str, ...]) -> LoraStack | None:
    """The stack of exactly these children of a module, if there is one."""
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


def _layer(
    layer: Any,
    last: bool,
    attention: AttentionHalf | None,
    mlp: MlpHalf | None,
    x: Tensor,
    attention_mask: Tensor | None = None,
    position_embeddings: Any = None,
    packed: tuple[Tensor, Tensor] | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> Tensor:
    """[B, N, H] to [B, N, H].

    If packed, which needs `reads_packed`, [1, T, H] to [1, T, H], the tokens alone: `packed` is their places in the B N
    ones, [T], and which of them are read in the end, [P]; the last layer's MLP sees and returns only those.
    """
    if packed is not None and attention is not None and mlp is not None:
        x = attention(x, attention_mask, position_embeddings, packed[0])
        return mlp(x[:, packed[1]] if last else x)
    if attention and past_key_values is None and attention.suits(x.shape[1]) and attention.takes(x.dtype):
        x = attention(x, attention_mask, position_embeddings)
    else:
        kwargs |= {"attention_mask": attention_mask, "position_embeddings": position_embeddings}
        kwargs |= {"past_key_values": past_key_values}
        x = x + layer.self_attn(hidden_states=layer.input_layernorm(x), **kwargs)[0]
    if mlp and mlp.takes(x.dtype):
        return mlp(x)
    return x + layer.mlp(layer.post_attention_layernorm(x))


def _reads_packed(layers: Sequence[Any], halves: Sequence[tuple[AttentionHalf, MlpHalf]], columns: int) -> bool:
    """Whether sequences of N columns can be given as their tokens alone, `packed`, now."""
    dtype = halves[0][0].norm.weight.dtype
    return all(
        "forward" in vars(layer) and attention.suits(columns) and attention.takes(dtype) and mlp.takes(dtype)
        for layer, (attention, mlp) in zip(layers, halves, strict=True)
    )


class _RmsNorm(torch.autograd.Function):
    """w x / √(mean(x²) + ε) with a frozen w; statistics in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        normal, inverse = normalize(x, epsilon)
        ctx.save_for_backward(normal, inverse, weight)
        return normal * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        normal, inverse, weight = ctx.saved_tensors
        return normalise_backward(gradient * weight, normal, inverse), None, None


def _normalize(norm: Any, x: Tensor) -> Tensor:
    return _RmsNorm.apply(x, norm.weight, norm.variance_epsilon)  # pyright: ignore[reportReturnType]


class _FrozenLinear(torch.autograd.Function):
    """x Wᵀ with a frozen W: the LM head."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight, ctx.shape = weight, x.shape
        return product(x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return product(gradient.reshape(-1, gradient.shape[-1]), ctx.weight.t()).view(ctx.shape), None


def _head(head: nn.Linear, x: Tensor) -> Tensor:
    return _FrozenLinear.apply(x, head.weight)  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Let every module compute by its own class, as hooks on single layers need it."""
    replaced = {module: vars(module).pop("forward") for module in model.modules() if "forward" in vars(module)}
    try:
        yield
    finally:
        for module, forward in replaced.items():
            vars(module)["forward"] = forward
