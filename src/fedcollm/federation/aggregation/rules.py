"""The aggregation rules by name.

Each rule is a row of `AGGREGATIONS` in `config/choices.py`, under the same name. The row says whether the rule weights
clients by their number of examples, and what it cannot be combined with.
"""

from collections.abc import Callable, Mapping

from fedcollm.federation.aggregation.base import Rule
from fedcollm.federation.aggregation.lora import ProductMean
from fedcollm.federation.aggregation.mean import WeightedMean
from fedcollm.messages import Adapter

#: The name of each rule, with a function that starts the rule for a round, given θ as it was broadcast.
RULES: Mapping[str, Callable[[Adapter], Rule]] = {
    "mean": lambda theta: WeightedMean(),
    "uniform": lambda theta: WeightedMean(),
    "product": ProductMean,
}
