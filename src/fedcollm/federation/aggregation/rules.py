"""The aggregation rules by name.

Each rule is a row of `AGGREGATIONS` in `config/choices.py`, under the same name. The row says whether the rule weights
clients by their number of examples, how many faulty clients it bears, and what it cannot be combined with.
"""

from collections.abc import Callable, Mapping
from functools import partial

from fedcollm.federation.aggregation.base import Rule, Start
from fedcollm.federation.aggregation.lora import ProductMean
from fedcollm.federation.aggregation.mean import WeightedMean
from fedcollm.federation.aggregation.robust import ROBUST, RobustRule

#: The name of each rule, with a function that starts the rule for a round.
RULES: Mapping[str, Callable[[Start], Rule]] = {
    "mean": lambda start: WeightedMean(),
    "uniform": lambda start: WeightedMean(),
    "held_out": lambda start: WeightedMean(),
    "product": lambda start: ProductMean(start.theta),
    **{name: partial(RobustRule, combine) for name, combine in ROBUST.items()},
}
