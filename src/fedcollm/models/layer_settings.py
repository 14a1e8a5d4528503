"""What the configuration of a transformer says of its single layers, and what it says once some of them are cut."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

#: Keys that list the indices of some layers.
_INDICES = (
    "attn_layer_indices",
    "mlp_only_layers",
    "moe_layers",
    "hybrid_layer_ids",
    "cross_attention_layers",
    "global_attn_idx",
    "full_attention_layers",
    "linear_attention_layers",
    "kv_source_layers",
    "ple_layer_ids",
    "local_layer_ids",
)

#: Keys that say how many of the first layers are special: dense instead of sparse, or without a window.
_FIRST = ("first_k_dense_replace", "num_dense_layers", "max_window_layers", "moe_layer_start_index")

#: Keys that say how many of the last layers are special: their keys and values are those of an earlier layer.
_LAST = ("num_kv_shared_layers",)


def after_cut(config: Any, total: int, kept: Sequence[int]) -> dict[str, Any]:
    """Return the values of a configuration that change if only some layers are kept, besides their number.

    - A list with an entry per layer, such as `layer_types`, or a text with a letter per layer (a pattern of a hybrid)
      keeps the entries of the layers that stay.
    - A list of indices, such as `mlp_only_layers`, has their new indices.
    - A number of first or last layers, such as `first_k_dense_replace`, counts those of them that stay.
    - `scale_depth`, which is divided by √(number of layers), is made smaller so that each layer computes the same.

    Args:
        config: the configuration of the whole model.
        total: its number of layers.
        kept: indices of the layers that stay, in ascending order.
    """
    found: dict[str, Any] = {}
    for name, value in cast("dict[str, Any]", vars(config)).items():
        rule = _rule(name, value, total)
        if rule is not None:
            found[name] = rule(value, total, kept)
    return found


_Rule = Callable[[Any, int, Sequence[int]], Any]

#: Keys of their own rule.
_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(_INDICES, lambda value, total, kept: [kept.index(i) for i in value if i in kept]),
    **dict.fromkeys(_FIRST, lambda value, total, kept: sum(i < value for i in kept)),
    **dict.fromkeys(_LAST, lambda value, total, kept: sum(i >= total - value for i in kept)),
    "scale_depth": lambda value, total, kept: value * math.sqrt(len(kept) / total),
}


def _rule(name: str, value: Any, total: int) -> _Rule | None:
    """Return how a value changes if layers are cut; None if it does not."""
    if name in _RULES:
        is_list = name in _INDICES
        return _RULES[name] if isinstance(value, list if is_list else int | float) else None
    if isinstance(value, list) and "layer" in name and len(cast("list[Any]", value)) == total:
        return lambda value, total, kept: [value[i] for i in kept]
    if isinstance(value, str) and "pattern" in name and len(value) == total:
        return lambda value, total, kept: "".join(value[i] for i in kept)
    return None
