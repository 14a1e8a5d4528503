"""Every name of an aggregation rule has its function, and every robust rule what the configuration has to know."""

from fedcollm.config.choices import AGGREGATIONS
from fedcollm.federation.aggregation.robust import ROBUST
from fedcollm.federation.aggregation.rules import RULES


def test_every_choice_has_a_rule_of_its_name():
    assert RULES.keys() == AGGREGATIONS.keys()


def test_every_robust_rule_needs_single_updates_and_ignores_numbers_of_examples():
    rows = [AGGREGATIONS[name] for name in ROBUST]
    assert all(row.single_updates and not row.weighted and (row.bears or row.reference) for row in rows)
