"""Bounds on the length of a client's change δ_k = θ_k − θ, its L2 norm over all tensors.

A change that is too long keeps its direction and is scaled down (Sun et al., "Can You Really Backdoor Federated
Learning?", arXiv 1911.07963, section 3). With secure aggregation only honest clients do so: the server sees no single
change, and checks that the mean is within the bound. What a dishonest client adds to a sum is bounded by
`secure_aggregation.value_range` for each value.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from fedcollm.config import FederationConfig
from fedcollm.messages import Adapter, ClientUpdate, distance, readable

#: How much longer than the bound an honest client's change may be after the rounding of its upload.
_ROOM = 1.05


def clipped(adapter: Adapter, start: Adapter, bound: float) -> Adapter:
    """Return an adapter whose change has an L2 norm of at most `bound`; the adapter itself if it has.

    Args:
        adapter: θ_k.
        start: θ, with the same names and shapes.
        bound: the largest norm.
    """
    length = distance(adapter, start)
    if length <= bound:
        return adapter
    scaled: Adapter = {}
    for name, tensor in adapter.items():
        theta = start[name].double()
        scaled[name] = (theta + (tensor.double() - theta) * (bound / length)).to(tensor.dtype)
    return scaled


def bounded(
    updates: Iterable[ClientUpdate],
    start: Callable[[ClientUpdate], Adapter],
    settings: FederationConfig,
    notes: list[str],
) -> Iterable[ClientUpdate]:
    """Return updates with changes no longer than `clip_norm` and than a multiple of the round's median.

    The median is that of the changes that are not zero, the lower one of two, so that an update of two can't raise it.

    Args:
        updates: the updates in a fixed order. If only `clip_norm` is set, they are taken one by one.
        start: returns θ in the shapes of an update.
        settings: `clip_norm` and `clip_to_median`.
        notes: receives a sentence about the changes that were too long.
    """
    if settings.clip_norm is not None:
        updates = _each(updates, start, settings.clip_norm, notes, f"federation.clip_norm {settings.clip_norm:g}")
    if settings.clip_to_median is None:
        return updates
    kept = list(updates)
    lengths = [length for update in kept if (length := distance(update.adapter, start(update)))]
    if not lengths:
        return kept
    middle = statistics.median_low(lengths)
    bound = settings.clip_to_median * middle
    return list(_each(kept, start, bound, notes, f"{settings.clip_to_median:g} × the median of {middle:.4g}"))


def _each(
    updates: Iterable[ClientUpdate],
    start: Callable[[ClientUpdate], Adapter],
    bound: float,
    notes: list[str],
    what: str,
) -> Iterable[ClientUpdate]:
    """Yield every update, scaled down to a bound, and then note which ones were longer."""
    longer: list[tuple[str, float]] = []
    count = 0
    for update in updates:
        theta, count = start(update), count + 1
        length = distance(update.adapter, theta)
        if length > bound * _ROOM:
            longer.append((update.client, length))
        yield update if length <= bound else replace(update, adapter=clipped(update.adapter, theta, bound))
    if longer:
        notes.append(readable(_told(longer, count, what)))


def _told(longer: Sequence[tuple[str, float]], count: int, what: str) -> str:
    clients = ", ".join(f"client {client} with an L2 norm of {length:.4g}" for client, length in longer)
    return f"the changes of {len(longer)} of {count} clients were scaled down to {what}: {clients}"
