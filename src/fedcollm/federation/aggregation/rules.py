"""The aggregation rules by name.

Each rule is a row of `AGGREGATIONS` in `config/choices.py`, under the same name. The row says whether the rule weights
clients by their number of examples, and what it cannot be combined with.
"""

from collections.abc import Callable, Mapping

import torch

from fedcollm.federation.aggregation.base import Rule
from fedcollm.federation.aggregation.lora import ProductMean
from fedcollm.federation.aggregation.mean import WeightedMean
from fedcollm.messages import Adapter


class CoordinateMedian:
    """The median of each value over the clients (Yin et al., arXiv 1803.01498, definition 1).

    Clients are not weighted. With an even number of clients it is the mean of the two middle values. All updates are
    held until the end.
    """

    def __init__(self) -> None:
        self._adapters: list[Adapter] = []

    def add(self, adapter: Adapter, weight: float) -> None:
        """Add one client's adapter; its weight does not count."""
        self._adapters.append(adapter)

    def value(self) -> Adapter:
        """Return the median of all that were added, in their dtypes."""
        count = len(self._adapters)
        median: Adapter = {}
        for name, first in self._adapters[0].items():
            ordered = torch.stack([adapter[name].double() for adapter in self._adapters]).sort(dim=0).values
            median[name] = ((ordered[(count - 1) // 2] + ordered[count // 2]) / 2).to(first.dtype)
        return median


#: The name of each rule, with a function that starts the rule for a round, given θ as it was broadcast.
RULES: Mapping[str, Callable[[Adapter], Rule]] = {
    "mean": lambda theta: WeightedMean(),
    "uniform": lambda theta: WeightedMean(),
    "product": ProductMean,
    "median": lambda theta: CoordinateMedian(),
}
