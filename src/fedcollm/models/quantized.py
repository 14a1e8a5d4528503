"""Frozen linear layers in 8 bits, packed and unpacked by bitsandbytes (Dettmers et al., arXiv 2208.07339).

Embedding, head and norms keep their dtype. PEFT has LoRA layers of its own for these layers, which `fuse` leaves alone.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedcollm.errors import SECTION, UserError

#: Names of output layers, which stay as they are.
_HEADS = ("head", "classifier", "lm_head", "score")

#: Bytes per weight by kind.
BYTES: Mapping[str, float] = {"int8": 1.0}

#: Attribute of a network that says how its layers are packed; PEFT reads another one.
_KIND, _FLAGS = "fedcollm_quantization", {"int8": "is_loaded_in_8bit"}


def quantize(network: nn.Module, kind: str) -> None:
    """Pack the frozen linear layers of a base network, in place, one after the other.

    Args:
        network: a network without an adapter, on its device.
        kind: `int8`, with one scale per output.

    Raises:
        UserError: bitsandbytes is not installed, or the network has no linear layers.
    """
    library, found = _bitsandbytes(kind), list(frozen_linear(network))
    if not found:
        raise UserError(f"{SECTION}quantization: {kind} packs linear layers, and this network has none. Set none.")
    for name, layer in found:
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, _LAYERS[kind](library, layer))
    setattr(network, _FLAGS[kind], True)
    setattr(network, _KIND, kind)


def round_trip(network: nn.Module, kind: str) -> None:
    """Replace the weights of all frozen linear layers by what they are after packing and unpacking, in place.

    Args:
        network: a network, perhaps with an adapter, whose layers are not packed.
        kind: as in `quantize`.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    library = _bitsandbytes(kind)
    for _, layer in frozen_linear(network):
        layer.weight.data.copy_(_UNPACKED[kind](library, layer.weight.data))


def frozen_linear(network: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the names and the layers that are packed: all plain linear ones except heads and parts of an adapter."""
    for name, module in list(cast(Any, network).named_modules()):
        last = name.removesuffix(".base_layer").rpartition(".")[2]
        if type(module) is nn.Linear and last not in _HEADS and ".lora_" not in name:
            yield name, module


def quantization_of(model: nn.Module) -> str | None:
    """Return how the layers of a model are packed, `int8`; None if they are not."""
    network = cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(network, _KIND, None)


def _bitsandbytes(kind: str) -> Any:
    """Return the library, which is imported only here because that takes 54 MB.

    Raises:
        UserError: it is not installed.
    """
    try:
        import bitsandbytes  # pyright: ignore
    except ImportError as error:
        raise UserError(
            f"{SECTION}quantization: {kind} needs bitsandbytes. Install it: pip install 'fedcollm[quantized]'"
        ) from error
    return bitsandbytes


def _eight_bits(library: Any, layer: nn.Linear) -> nn.Module:
    options = {"bias": cast(Any, layer).bias is not None, "has_fp16_weights": False, "device": "meta"}
    packed = library.nn.Linear8bitLt(layer.in_features, layer.out_features, **options)
    weight = library.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    return _filled(packed, weight, layer)


def _filled(packed: Any, weight: Any, layer: nn.Linear) -> nn.Module:
    """Put a weight, which is packed by the move to its device, and the bias into a new layer."""
    packed.weight = weight.to(layer.weight.device)
    if cast(Any, layer).bias is not None:
        packed.bias = nn.Parameter(layer.bias.data, requires_grad=False)
    return packed


def _from_eight_bits(library: Any, weight: Tensor) -> Tensor:
    packed, scales, _ = library.functional.int8_vectorwise_quant(weight.to(torch.float16))
    return library.functional.int8_vectorwise_dequant(packed, scales).to(weight.dtype)


_LAYERS: Mapping[str, Callable[[Any, nn.Linear], nn.Module]] = {"int8": _eight_bits}
_UNPACKED: Mapping[str, Callable[[Any, Tensor], Tensor]] = {"int8": _from_eight_bits}
