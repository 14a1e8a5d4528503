"""Rules by which updates become one adapter, by name.

Each rule here is a row of `AGGREGATIONS` in `config/choices.py`, under the same name, which says whether it weighs
clients by their number of examples and what it can't be combined with.
"""

from collections.abc import Callable, Mapping

from fedcollm.federation.aggregation.base import Rule
from fedcollm.federation.aggregation.lora import ProductMean
from fedcollm.federation.aggregation.mean import WeightedMean
from fedcollm.messages import Adapter

#: Name to what starts the rule for a round, from θ as it was broadcast.
RULES: Mapping[str, Callable[[Adapter], Rule]] = {
    "mean": lambda theta: WeightedMean(),
    "uniform": lambda theta: WeightedMean(),
    "product": ProductMean,
}
