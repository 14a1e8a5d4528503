"""LoRA of which only a core of r x r values per layer is trained and sent, between two frozen matrices.

The change of a weight W, [N, K], is s c B R A with orthonormal A, [r, K], and B, [N, r], along the largest singular
values of W (LoRA-XS, Bałazy et al., arXiv 2405.17604), and s = α / r. The factor c is such that α means what it means
for LoRA; see `factor`. The change is linear in R, so that the mean of the clients'
cores is the mean of their changes exactly, as in Fed-SB (Singhal et al., arXiv 2502.15436), and needs neither products
nor more noise under privacy. Every party computes A and B from the base, and nobody sends them.
"""

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fedcollm.errors import UserError

if TYPE_CHECKING:
    import peft

#: PEFT's name of the only adapter.
_ADAPTER = "default"


class Core(nn.Module):
    """Computes LoRA's A of a layer from its core: R A, [r, K], of which R, [r, r], is trained and starts from zero.

    Args:
        a: [r, K], the frozen factor.
    """

    def __init__(self, a: Tensor):
        super().__init__()
        self.register_buffer("a", a, persistent=False)

    def forward(self, core: Tensor) -> Tensor:
        """Return R A, [r, K], given R, [r, r]."""
        return core @ cast(Tensor, self.a)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the core that training starts from, whatever PEFT's random A is."""
        return weight.new_zeros(len(weight), len(weight))


def add_cores(model: "peft.PeftModel") -> None:
    """Let only a core per layer be trained, in place.

    Args:
        model: a model with a fresh LoRA adapter.

    Raises:
        UserError: an adapter is on something else than a linear layer, or its rank exceeds the layer's size.
    """
    for name, layer in cast(Any, model).named_modules():
        if not hasattr(layer, "lora_A") or _ADAPTER not in layer.lora_A:
            continue
        weight, rank = layer.base_layer.weight, layer.r[_ADAPTER]
        if weight.dim() != 2 or type(layer.lora_A[_ADAPTER]) is not nn.Linear:
            raise UserError(f"adapter.core: {name} is no linear layer. Set adapter.targets to linear layers.")
        if rank > min(weight.shape):
            raise UserError(
                f"adapter.core: rank {rank} exceeds the size of {name}, {tuple(weight.shape)}. Lower adapter.rank."
            )
        reads, writes = layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]
        matrix = weight.T if getattr(layer, "fan_in_fan_out", False) else weight
        b, a = directions(matrix, rank)
        writes.weight.data.copy_(b * factor(*b.shape))
        writes.weight.requires_grad_(False)
        parametrize.register_parametrization(reads, "weight", Core(a.to(reads.weight)))


def factor(outputs: int, rank: int) -> float:
    """Return c = N / (√3 r), with which a step of AdamW changes the loss by as much as with LoRA of the same α.

    AdamW's first step moves each trained value by the learning rate η. So, to first order, the loss falls by η times
    the sum of the gradient's absolute values. Let G, [N, K], be the gradient of W, with independent entries of standard
    deviation g. LoRA trains N r values of B, whose gradients s G Aᵀ have a standard deviation of s g / √3, because PEFT
    draws A from ±1 / √K: a sum in proportion to s N r g / √3. A core has r² values, with gradients s c Bᵀ G Aᵀ of
    s c g: a sum in proportion to s c r² g. LoRA's sum, α N g / √3, does not depend on its rank.

    Args:
        outputs: N, the rows of W.
        rank: r.

    >>> round(factor(576, 32), 2)
    10.39
    """
    return outputs / (math.sqrt(3) * rank)


def directions(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the singular vectors of a matrix for its largest singular values, with signs that all machines agree on.

    Args:
        weight: [N, K]; on torch's `meta` device, the vectors have no values either.
        rank: r.

    Returns:
        B, [N, r], whose columns, and A, [r, K], whose rows are orthonormal, in float32.
    """
    if weight.device.type == "meta":
        sizes = (len(weight), rank), (rank, weight.shape[1])
        return weight.new_empty(sizes[0], dtype=torch.float32), weight.new_empty(sizes[1], dtype=torch.float32)
    if len(weight) < weight.shape[1]:
        a, b = directions(weight.T, rank)
        return b.T.contiguous(), a.T.contiguous()
    linalg: Any = torch.linalg
    matrix = weight.detach().double()
    vectors: Tensor = linalg.eigh(matrix.T @ matrix)[1].flip(1)[:, :rank]  # [K, r], the largest first
    vectors = vectors * torch.sign(vectors.gather(0, vectors.abs().argmax(0, keepdim=True)))
    images = matrix @ vectors  # [N, r]
    outputs: Tensor = linalg.qr(images)[0]  # orthonormal also where a singular value is zero
    outputs = outputs * torch.where((outputs * images).sum(0) < 0, -1.0, 1.0)
    return outputs.float().contiguous(), vectors.T.float().contiguous()


def has_cores(model: nn.Module) -> bool:
    """Return whether only cores of a model's adapter are trained."""
    return any(isinstance(module, Core) for module in cast(Any, model).modules())


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model with cores as that of plain LoRA, with R A for A, under the names of PEFT."""
    state: dict[str, Tensor] = {}
    modules = dict(cast(Any, model).named_modules())
    for name, tensor in cast(Any, model).state_dict().items():
        place, found, _ = name.partition(".parametrizations.weight.")
        state[f"{place}.weight" if found else name] = modules[place].weight.detach() if found else tensor
    return state
