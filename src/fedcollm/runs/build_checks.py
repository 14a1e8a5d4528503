"""Build what the server finds out about updates with its own labelled public examples."""

from collections.abc import Sequence
from typing import Any

from fedcollm.config import RunConfig
from fedcollm.config.choices import AGGREGATIONS
from fedcollm.data.pool import Split
from fedcollm.errors import UserError
from fedcollm.federation.aggregation.base import Aggregator
from fedcollm.federation.aggregation.checked import CheckedAggregator
from fedcollm.federation.public_reference import OwnUpdate, PublicScore
from fedcollm.seeding import RunIdentity
from fedcollm.training.distillation import ModelPair


def own_update(config: RunConfig, identity: RunIdentity, pair: ModelPair, split: Split) -> OwnUpdate | None:
    """Return what trains the update that the server compares the clients' with; None if the rule needs none.

    Raises:
        UserError: the rule needs labelled public examples, and there are none.
    """
    name = config.federation.aggregation
    if not AGGREGATIONS[name].reference:
        return None
    return OwnUpdate(pair, _labelled(split, f"federation.aggregation: {name}"), config.client, identity)


def checked(config: RunConfig, pair: ModelPair, split: Split, aggregator: Aggregator) -> Aggregator:
    """Return an aggregator that checks the clients' mean, if the configuration asks for it.

    Raises:
        UserError: there are no labelled public examples to check it on.
    """
    most = config.federation.max_drop
    if most is None:
        return aggregator
    examples = _labelled(split, f"federation.max_drop: {most:g}")
    return CheckedAggregator(aggregator, PublicScore(pair, examples, config.evaluation.batch_size), most)


def _labelled(split: Split, key: str) -> Sequence[Any]:
    labelled = [example for example in split.public if example.label is not None]
    if not labelled:
        raise UserError(f"{key} needs labelled public examples, and the data has none. Label some, or leave it out.")
    return labelled
