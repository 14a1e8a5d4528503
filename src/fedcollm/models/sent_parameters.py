"""What of a model may be trained, and so be sent: an adapter's own matrices, and what the modality declares."""

from collections.abc import Collection, Sequence
from typing import Any, cast

from torch import nn

from fedcollm.errors import UserError


def check_sent(model: nn.Module, base: Collection[nn.Parameter], whole: Sequence[str]) -> None:
    """Check that nothing is trained of the base itself, nor anything at its embeddings or at its output over words.

    The gradient of an embedding is zero for all words that the data lack. So the rows that a client changes are the
    words of its data, whatever hides the rest.

    Args:
        model: the model with its adapter.
        base: the parameters of the base before it got the adapter.
        whole: names of modules that are trained as a whole, because the modality declares it.

    Raises:
        UserError: names the first parameter that must not be trained.
    """
    own, modules = set(map(id, base)), dict[str, nn.Module](cast(Any, model).named_modules())
    outputs = _outputs(model)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or _is_declared(name, whole):
            continue
        parts = name.split(".")
        above = (modules.get(".".join(parts[:end])) for end in range(1, len(parts)))
        if any(_is_vocabulary(module, outputs) for module in above):
            what = "part of an embedding or of the output layer, whose changed rows are the words of the data"
        elif id(parameter) in own or ".modules_to_save." in name:
            what = "part of the base model"
        else:
            continue
        raise UserError(
            f"adapter: these options or targets train {name}, {what}, and a client would send it. Remove it from "
            "adapter.targets and adapter.options: only matrices of the adapter at other layers may be trained."
        )


def _is_declared(name: str, whole: Sequence[str]) -> bool:
    return any(f".{module}.modules_to_save." in f".{name}" for module in whole)


def _outputs(model: nn.Module) -> nn.Module | None:
    """Return the output layer over the vocabulary, if the model names one."""
    try:
        found = cast(Any, model).get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return _innermost(found)


def _innermost(module: Any) -> Any:
    """Return the base's own layer below adapters, which may be several."""
    while (inner := getattr(module, "base_layer", None)) is not None:
        module = inner
    return module


def _is_vocabulary(module: nn.Module | None, outputs: nn.Module | None) -> bool:
    layer = _innermost(module)
    return isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) or (outputs is not None and layer is outputs)
