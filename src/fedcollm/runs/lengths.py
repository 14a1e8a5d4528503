"""How long the examples of a run are, for `fedcollm check`."""

from itertools import chain
from typing import Any

from fedcollm.data.pool import Split
from fedcollm.modalities.base import Modality


def lengths(modality: Modality, split: Split) -> dict[str, dict[str, int]]:
    """Return the median, the 95th percentile and the largest of each length of the examples of a run.

    Args:
        modality: says which lengths an example has.
        split: the run's examples.

    Returns:
        Name of a length to "median", "95 %" and "longest"; lengths that are the same for all examples are left out.

    Raises:
        UserError: an example can't be used with these models.
    """
    values: dict[str, list[int]] = {}
    examples: chain[Any] = chain(split.public, split.test, *split.private.values())
    for example in examples:
        for name, value in modality.lengths(example).items():
            values.setdefault(name, []).append(value)
    return {name: _summary(sorted(some)) for name, some in values.items() if len(set(some)) > 1}


def _summary(ordered: list[int]) -> dict[str, int]:
    last = len(ordered) - 1
    return {"median": ordered[last // 2], "95 %": ordered[-(-95 * len(ordered) // 100) - 1], "longest": ordered[last]}
