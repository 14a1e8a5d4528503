"""Cut a transformer: keep some of its layers, and some of the neurons of its MLPs."""

import contextlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedcollm.errors import SECTION, UserError
from fedcollm.models.layer_settings import after_cut

#: A number of layers, or their indices.
Layers = int | Sequence[int]

#: Key of a model's `config.json` that holds the indices of the layers that it was cut to.
KEPT_LAYERS = "kept_layers"

#: The advice for a model whose layers can't be cut.
_WHOLE = f"Set {SECTION}layers: null and {SECTION}heal: null, or choose another model."

#: What to do if the configuration does not describe what is left, by the key that asked for the cut.
_REMEDIES = {"layers": _WHOLE, "mlp_share": f"Set {SECTION}mlp_share: 1, or choose another model."}

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
            f"{SECTION}layers: {keep} of a model with {total} layers can't be kept; give a number from 1 to {total}."
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
            f"{SECTION}layers: {list(layers)!s:.200} of a model with {total} layers can't be kept. Give indices from 0 "
            f"to {total - 1} in ascending order, each once, or the number of layers to keep."
        )
    return list(layers)


def edge_layers(total: int, keep: int) -> list[list[int]]:
    """Return every choice of `keep` layers that leaves out one contiguous block of the others.

    >>> edge_layers(4, 2)
    [[2, 3], [0, 3], [0, 1]]
    """
    return [[*range(first), *range(total - keep + first, total)] for first in range(keep + 1)]


def layer_count(model: Any) -> int:
    """Return the number of layers of a transformer.

    Raises:
        UserError: its configuration does not say, as that of a model with several parts.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    if not isinstance(count, int):
        raise UserError(
            f"{SECTION}layers: the configuration of {type(model).__name__} does not say how many layers it has, so "
            f"none can be cut. {_WHOLE}"
        )
    return count


def prune_layers(model: Any, layers: Layers) -> Any:
    """Keep some layers of a transformer, in place: depth pruning, which Sheared-LLaMA starts with.

    Args:
        model: a transformers model, whose layers are the module list of length `num_hidden_layers`.
        layers: indices of the layers to keep, or the number of evenly spread ones.

    Returns:
        The same model.

    Raises:
        UserError: the model has no such layers, or can't be loaded again without the others.
    """
    _keep(model, kept_layers(layer_count(model), layers))
    _check_configuration(model, "layers")
    return model


def rebuilt(model: Any) -> Any:
    """Return a cut transformer as it will be after it is saved and loaded again, in evaluation mode.

    A layer that computes by its index, such as in GPT-2 with `scale_attn_by_inverse_layer_idx`, has the index that it
    had in the whole model until then.
    """
    config = cast(Any, type(model.config)).from_dict(model.config.to_dict())
    config._attn_implementation = model.config._attn_implementation  # which is not saved
    with torch.device(model.device):
        built = type(model)(config).to(model.dtype)
    built.load_state_dict(model.state_dict())
    built.tie_weights()
    built.name_or_path = model.name_or_path
    return built.eval()


@contextlib.contextmanager
def only_layers(model: Any, layers: Sequence[int]) -> Generator[None, None, None]:
    """Let a transformer compute with some of its layers only, inside the `with` block."""
    lists, total = _layer_lists(model), layer_count(model)
    changed = ("num_hidden_layers", *after_cut(model.config, total, layers))
    values = {name: getattr(model.config, name) for name in changed}
    _keep(model, layers)
    try:
        yield
    finally:
        for name, module in lists.items():
            model.set_submodule(name, module)
        for name, value in values.items():
            setattr(model.config, name, value)


def _keep(model: Any, chosen: Sequence[int]) -> None:
    """Keep the chosen layers, and what the configuration says of each of them.

    Raises:
        UserError: the layers share weights, or the configuration can't say how many there are.
    """
    lists, total = _layer_lists(model), layer_count(model)
    _refuse_shared(model, lists)
    values = after_cut(model.config, total, chosen)
    try:
        model.config.num_hidden_layers = len(chosen)
    except NotImplementedError as error:
        raise UserError(
            f"{SECTION}layers: {type(model).__name__} has no single number of layers, so none can be cut. {_WHOLE}"
        ) from error
    for name, module in lists.items():
        model.set_submodule(name, nn.ModuleList(module[i] for i in chosen))
    for name, value in values.items():
        setattr(model.config, name, value)


def _refuse_shared(model: Any, lists: Mapping[str, nn.ModuleList]) -> None:
    """Refuse layers that share a weight, as the blocks of Zamba: which of them owns it depends on their indices.

    Raises:
        UserError: as above.
    """
    for module in lists.values():
        owners: dict[int, int] = {}
        for index, layer in enumerate(module):
            for parameter in layer.parameters():
                if owners.setdefault(id(parameter), index) != index:
                    raise UserError(
                        f"{SECTION}layers: the layers of {type(model).__name__} share weights, so none can be cut. "
                        f"{_WHOLE}"
                    )


def _layer_lists(model: Any) -> dict[str, nn.ModuleList]:
    """Return the module lists with an entry per layer, by name. Lists inside a layer, such as experts, do not count.

    Raises:
        UserError: there is none.
    """
    total = layer_count(model)
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == total and not inside:
            found[name] = module
    if not found:
        raise UserError(
            f"{SECTION}layers: {type(model).__name__} has no list of its {total} layers, so none can be cut. {_WHOLE}"
        )
    return found


def _check_configuration(model: Any, key: str) -> None:
    """Refuse a cut model that its own configuration does not describe: loading it would change or invent weights.

    Raises:
        UserError: the configuration describes another model, or none.
    """
    try:
        config = cast(Any, type(model.config)).from_dict(model.config.to_dict())
        with torch.device("meta"):
            described = type(model)(config)
        same = _shapes(described) == _shapes(model)
    except Exception:  # whatever a model's own code raises about a configuration that it does not expect
        same = False
    if not same:
        raise UserError(
            f"{SECTION}{key}: {type(model).__name__} can't be loaded again without what is cut, because its "
            f"configuration does not describe what is left. {_REMEDIES[key]}"
        )


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


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
            f"{SECTION}mlp_share: the MLPs of {type(model).__name__} do not consist of {', '.join(names)}, so their "
            f"neurons can't be ranked. {_REMEDIES['mlp_share']}"
        )
    return found


def prune_neurons(model: Any, kept: Sequence[Tensor]) -> None:
    """Keep some neurons of every gated MLP, in place: width pruning (Minitron, Muralidharan et al., arXiv 2407.14679).

    Args:
        model: a transformers model with gated MLPs.
        kept: for each MLP, the indices of its neurons to keep, [m] int64, the same number for all.

    Raises:
        UserError: the model has MLPs of several kinds, such as shared experts, whose sizes its configuration then does
            not describe.
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
    _check_configuration(model, "mlp_share")


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
