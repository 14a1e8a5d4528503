"""Cut a transformer: keep some of its layers, and some of the neurons of its MLPs."""

import contextlib
from collections.abc import Generator, Sequence
from typing import Any

from torch import Tensor, nn

from fedcollm.errors import UserError

#: A number of layers, or their indices.
Layers = int | Sequence[int]

#: Key of a model's `config.json` that holds the indices of the layers that it was cut to.
KEPT_LAYERS = "kept_layers"

#: Names of the linear layers of a gated MLP: two into its neurons, one out of them.
_INTO, _OUT = ("gate_proj", "up_proj"), "down_proj"


def even_layers(total: int, keep: int) -> list[int]:
    """Return the indices of `keep` layers spread evenly over `total` layers, first and last included.

    Raises:
        UserError: there are not that many layers.

    >>> even_layers(30, 10)
    [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]
    """
    if not 1 <= keep <= total:
        raise UserError(
            f"layers: {keep} of a model with {total} layers can't be kept; give a number from 1 to {total}."
        )
    return [0] if keep == 1 else [round(i * (total - 1) / (keep - 1)) for i in range(keep)]


def kept_layers(total: int, layers: Layers) -> list[int]:
    """Return the indices of the layers to keep: those that are given, or that many evenly spread ones.

    Raises:
        UserError: an index is not that of a layer, or the indices are not in ascending order.

    >>> kept_layers(4, [0, 1, 3]), kept_layers(4, 2)
    ([0, 1, 3], [0, 3])
    """
    if isinstance(layers, int):
        return even_layers(total, layers)
    if not layers or list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < total:
        raise UserError(
            f"layers: {list(layers)} of a model with {total} layers can't be kept. Give indices from 0 to {total - 1} "
            "in ascending order, each once, or the number of layers to keep."
        )
    return list(layers)


def edge_layers(total: int, keep: int) -> list[list[int]]:
    """Return every choice of `keep` layers that leaves out one contiguous block of the others.

    >>> edge_layers(4, 2)
    [[2, 3], [0, 3], [0, 1]]
    """
    return [[*range(first), *range(total - keep + first, total)] for first in range(keep + 1)]


def prune_layers(model: Any, layers: Layers) -> Any:
    """Keep some layers of a transformer, in place: depth pruning, which Sheared-LLaMA starts with.

    Args:
        model: a transformers model, whose layers are the module list of length `num_hidden_layers`.
        layers: indices of the layers to keep, or the number of evenly spread ones.

    Returns:
        The same model.

    Raises:
        UserError: the model has no such layers.
    """
    total = model.config.num_hidden_layers
    chosen = kept_layers(total, layers)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ModuleList) and len(module) == total:
            model.set_submodule(name, nn.ModuleList(module[i] for i in chosen))
    model.config.num_hidden_layers = len(chosen)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in chosen]
    return model


@contextlib.contextmanager
def only_layers(model: Any, layers: Sequence[int]) -> Generator[None, None, None]:
    """Let a transformer compute with some of its layers only, inside the `with` block."""
    config = model.config
    types = getattr(config, "layer_types", None)
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == _count(model)}
    total = _count(model)
    prune_layers(model, layers)
    try:
        yield
    finally:
        for name, module in lists.items():
            model.set_submodule(name, module)
        config.num_hidden_layers = total
        if types:
            config.layer_types = types


def _count(model: Any) -> int:
    return int(model.config.num_hidden_layers)


def gated_mlps(model: nn.Module) -> list[Any]:
    """Return the gated MLPs of a transformer, in the order of its layers.

    Raises:
        UserError: it has none, so that its neurons can't be told apart.
    """
    names = (*_INTO, _OUT)
    found = [
        module for module in model.modules() if all(isinstance(getattr(module, n, None), nn.Linear) for n in names)
    ]
    if not found:
        raise UserError(
            f"mlp_share: the MLPs of {type(model).__name__} do not consist of {', '.join(names)}, so their neurons "
            "can't be ranked. Set mlp_share: 1."
        )
    return found


def prune_neurons(model: Any, kept: Sequence[Tensor]) -> None:
    """Keep some neurons of every gated MLP, in place: width pruning (Minitron, Muralidharan et al., arXiv 2407.14679).

    Args:
        model: a transformers model with gated MLPs.
        kept: for each MLP, the indices of its neurons to keep, [m] int64, the same number for all.
    """
    for mlp, neurons in zip(gated_mlps(model), kept, strict=True):
        for name in _INTO:
            _keep_outputs(getattr(mlp, name), neurons)
        out = getattr(mlp, _OUT)
        out.weight = nn.Parameter(out.weight.detach()[:, neurons].clone())
        out.in_features = len(neurons)
        if hasattr(mlp, "intermediate_size"):
            mlp.intermediate_size = len(neurons)
    model.config.intermediate_size = len(kept[0])


def _keep_outputs(layer: nn.Linear, rows: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[rows].clone())
    if layer.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
        layer.bias = nn.Parameter(layer.bias.detach()[rows].clone())
    layer.out_features = len(rows)


def neurons_to_keep(importance: Tensor, share: float) -> Tensor:
    """Return the indices of the most important neurons, [m] int64 in ascending order.

    Args:
        importance: [N], one number per neuron.
        share: share of the neurons to keep, see `neuron_count`.

    >>> import torch
    >>> neurons_to_keep(torch.tensor([1.0, 9, 2, 8, 3, 7, 4, 6, 5, 0, 0, 0, 0, 0, 0, 0]), 0.5).tolist()
    [1, 2, 3, 4, 5, 6, 7, 8]
    """
    count = neuron_count(len(importance), share)
    return importance.topk(count).indices.sort().values


def neuron_count(total: int, share: float) -> int:
    """Return how many neurons a share of them is, rounded up to a multiple of 8.

    >>> neuron_count(1536, 0.5), neuron_count(100, 0.5), neuron_count(4, 0.5)
    (768, 56, 4)
    """
    return min(-(-round(share * total) // 8) * 8, total)
