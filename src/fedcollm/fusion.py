"""LoRA as few large products, and other layers as one step each: what makes fine-tuning fast. No parameter changes.

PEFT computes y = x Wᵀ + s (x Aᵀ) Bᵀ (Hu et al., arXiv 2106.09685, eq. 3) as three products for every layer, with a
change of dtype around the last two. Here the layers that share an input (query, key and value; gate and up) are one:
their frozen weights and their A, in the base's dtype, lie below each other in one matrix, so that one product gives
x Wᵀ and x Aᵀ of all of them, and one product of the backward pass gives the whole gradient of x. The parameters stay
PEFT's own, in float32: the matrix holds copies of A, and the frozen weights are views into it.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # not public
_ADAPTER = "default"  # PEFT's name of the one adapter

#: Children of one module that are called with the same input.
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("gate_proj", "up_proj"))


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X Wᵀ + b, without a record for gradients; float32 on a CPU by oneDNN, up to 1.4 x as fast as by MKL on AMD.

    Args:
        x: [T, K].
        weight: [N, K], in any strides.
        bias: [N], or None.
    """
    if _ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and len(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return functional.linear(x, weight, bias)


class _Stacked(torch.autograd.Function):
    """y_i = x W_iᵀ + b_i + s (x A_iᵀ) B_iᵀ for all members i at once; gradients of x, A_i and B_i."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stack: "LoraStack", *adapters: Tensor) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])  # [T, K]
        both = product(flat, stack.matrix, stack.bias)  # [T, N + R]: x Wᵀ beside x Aᵀ
        y, hidden = both[:, : stack.outputs], both[:, stack.outputs :].contiguous()
        b = stack.scaled_b(adapters[len(adapters) // 2 :])  # [N, R]
        y.addmm_(hidden, b.t())
        ctx.save_for_backward(flat, hidden, b)
        ctx.stack, ctx.shape = stack, x.shape
        return tuple(part.view(*x.shape[:-1], -1) for part in y.split(stack.widths, dim=1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        flat, hidden, b = ctx.saved_tensors
        stack: LoraStack = ctx.stack
        both = flat.new_empty(len(flat), len(stack.matrix))  # [T, N + R]: gradients of x Wᵀ beside those of x Aᵀ
        for part, gradient in zip(both[:, : stack.outputs].split(stack.widths, dim=1), gradients, strict=True):
            part.copy_(gradient.reshape(len(flat), -1))
        outputs, inner = both[:, : stack.outputs], both[:, stack.outputs :]
        torch.mm(outputs, b, out=inner)
        of_x = product(both, stack.matrix.t()).view(ctx.shape) if ctx.needs_input_grad[0] else None
        of_a = torch.mm(inner.t(), flat).float().split(stack.ranks)  # each [r, K]
        of_b = stack.blocks(torch.mm(outputs.t(), hidden).float().mul_(stack.scale))  # each [n, r]
        return of_x, None, *of_a, *of_b


class LoraStack:
    """Linear layers with LoRA adapters that share an input, as one matrix.

    Args:
        layers: PEFT's layers; their frozen weights become views into the matrix.

    Attributes:
        matrix: [N + R, K] in the base's dtype: all frozen weights, then copies of all A.
        bias: [N + R], zero beside A; None if no layer has one.
        widths: rows of each layer's weight; `outputs` is their sum N.
        ranks: rows of each layer's A; their sum is R.
        scale: s = α / r, the same for all layers.
    """

    def __init__(self, layers: Sequence[Any]):
        self.layers = list(layers)
        weights = [layer.base_layer.weight for layer in layers]
        self.widths, self.ranks = [len(w) for w in weights], [layer.r[_ADAPTER] for layer in layers]
        self.outputs, self.scale = sum(self.widths), layers[0].scaling[_ADAPTER]
        self.matrix = weights[0].new_empty(self.outputs + sum(self.ranks), weights[0].shape[1])
        for weight, rows in zip(weights, self.matrix[: self.outputs].split(self.widths), strict=True):
            rows.copy_(weight.data)
            weight.data = rows
        biases = [layer.base_layer.bias for layer in layers]
        self.bias = None
        if any(bias is not None for bias in biases):
            self.bias = self.matrix.new_zeros(len(self.matrix))
            for bias, part in zip(biases, self.bias[: self.outputs].split(self.widths), strict=True):
                part.copy_(bias.data if bias is not None else torch.zeros_like(part))
        self._waiting: tuple[Tensor, list[Tensor | None]] | None = None

    def output(self, member: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One layer's output [..., n] for x [..., K]; the others' are kept for their turn with the same x."""
        layer = self.layers[member]
        if layer.disable_adapters or layer.merged or kwargs or x.dtype != self.matrix.dtype or self._moved():
            return type(layer).forward(layer, x, *args, **kwargs)
        if self._waiting is None or self._waiting[0] is not x or self._waiting[1][member] is None:
            self._waiting = x, list(self._outputs(x))
        outputs = self._waiting[1]
        y, outputs[member] = outputs[member], None
        if not any(output is not None for output in outputs):
            self._waiting = None
        return y  # pyright: ignore[reportReturnType]

    def _outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        a = [layer.lora_A[_ADAPTER].weight for layer in self.layers]
        b = [layer.lora_B[_ADAPTER].weight for layer in self.layers]
        with torch.no_grad():
            for rows, value in zip(self.matrix[self.outputs :].split(self.ranks), a, strict=True):
                rows.copy_(value)
        return _Stacked.apply(x, self, *a, *b)  # pyright: ignore[reportReturnType]

    def _moved(self) -> bool:
        """Whether the model went to another device or dtype after it was fused."""
        return self.layers[0].base_layer.weight.data_ptr() != self.matrix.data_ptr()

    def scaled_b(self, b: Sequence[Tensor]) -> Tensor:
        """[N, R] in the base's dtype: s B_i on the diagonal."""
        whole = b[0] if len(b) == 1 else torch.block_diag(*b)
        return (whole * self.scale).to(self.matrix.dtype)

    def blocks(self, whole: Tensor) -> list[Tensor]:
        """The blocks on the diagonal of an [N, R] matrix."""
        rows = whole.split(self.widths)
        return [row.split(self.ranks, dim=1)[i] for i, row in enumerate(rows)]


class _FrozenLinear(torch.autograd.Function):
    """x Wᵀ with a frozen W: the LM head."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight, ctx.shape = weight, x.shape
        return product(x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return product(gradient.reshape(-1, gradient.shape[-1]), ctx.weight.t()).view(ctx.shape), None


class _RmsNorm(torch.autograd.Function):
    """w x / √(mean(x²) + ε) (Zhang and Sennrich, arXiv 1910.07467, eq. 4) with a frozen w; statistics in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        mean = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse = mean.add_(epsilon).rsqrt_()
        normal = (wide * inverse).to(x.dtype)
        ctx.save_for_backward(normal, inverse, weight)
        return normal * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        normal, inverse, weight = ctx.saved_tensors
        gradient = gradient * weight
        along = (gradient * normal).mean(-1, keepdim=True, dtype=torch.float32)
        return torch.addcmul(gradient, normal, along.neg_().to(normal.dtype)).mul_(inverse.to(normal.dtype)), None, None


#: transformers' classes with the formula of `_RmsNorm`; Gemma's multiplies by 1 + w.
_RMS_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")


#: transformers' layers of attention and MLP, each after a norm and with a residual, and nothing else.
_PRE_NORM_LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")


def fuse(model: Any) -> None:
    """Make a PEFT model's forward and backward passes fast; a module that doesn't qualify stays as it is.

    Those are LoRA layers without dropout and variants on plain linear layers, root-mean-square norms, the LM head, and
    the last layer: a model with `reads_last_columns` takes `last_columns=R`, and its last MLP then sees R columns only.
    """
    for parent in list(model.modules()):
        children: dict[str, Any] = {name: child for name, child in parent.named_children() if _qualifies(child)}
        for names in SIBLINGS:
            layers = [children.get(name) for name in names]
            if all(layer is not None and _alike(layer, layers[0]) for layer in layers):
                _replace([children.pop(name) for name in names])
        for layer in children.values():
            _replace([layer])
        if type(parent).__name__ in _RMS_NORMS and not parent.weight.requires_grad:
            parent.forward = functools.partial(_normalise, parent)
    layers = [module for module in model.modules() if type(module).__name__ in _PRE_NORM_LAYERS]
    if layers:
        layers[-1].forward = functools.partial(_last_layer, layers[-1])
        model.reads_last_columns = True
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad:
        vars(head)["forward"] = functools.partial(_head, head)


def _normalise(norm: Any, x: Tensor) -> Tensor:
    return _RmsNorm.apply(x, norm.weight, norm.variance_epsilon)  # pyright: ignore[reportReturnType]


def _last_layer(layer: Any, hidden: Tensor, *args: Any, last_columns: int | None = None, **kwargs: Any) -> Tensor:
    """Attention over all columns [B, N, H]; what comes after it, for the last ones only: [B, R, H]."""
    if last_columns is None:
        return type(layer).forward(layer, hidden, *args, **kwargs)
    attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden), **kwargs)
    kept = (hidden + attended)[:, -last_columns:].contiguous()
    return kept + layer.mlp(layer.post_attention_layernorm(kept))


def _head(head: nn.Linear, x: Tensor) -> Tensor:
    return _FrozenLinear.apply(x, head.weight)  # pyright: ignore[reportReturnType]


def _qualifies(layer: Any) -> bool:
    if type(layer) is not LoraLinear or type(layer.base_layer) is not nn.Linear or list(layer.r) != [_ADAPTER]:
        return False
    plain = (
        isinstance(layer.lora_dropout[_ADAPTER], nn.Identity)
        and not layer.lora_variant
        and not layer.lora_bias[_ADAPTER]
    )
    return plain and not any(p.requires_grad for p in layer.base_layer.parameters())


def _alike(layer: Any, first: Any) -> bool:
    return (
        layer.base_layer.in_features == first.base_layer.in_features
        and layer.base_layer.weight.dtype == first.base_layer.weight.dtype
        and layer.scaling == first.scaling
    )


def _replace(layers: list[Any]) -> None:
    stack = LoraStack(layers)
    for member, layer in enumerate(layers):
        layer.forward = functools.partial(stack.output, member)


@contextlib.contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Let every module compute by its own class, as hooks on single layers need it."""
    replaced = {module: vars(module).pop("forward") for module in model.modules() if "forward" in vars(module)}
    try:
        yield
    finally:
        for module, forward in replaced.items():
            vars(module)["forward"] = forward
