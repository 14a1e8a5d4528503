"""Examples that a client holds out of its training, and the weight that its adapter's score on them gives it.

The score measures whether a client's own labels can be learned: of random labels, nothing carries over to examples that
were held out. It says nothing of a hostile client, which can claim any score; no claim counts for more than 1.
"""

import random
from collections.abc import Sequence
from typing import Any

from fedcollm.messages import ClientUpdate, Score
from fedcollm.seeding import derive_seed

#: The name of the metric in a client's score.
HELD_OUT = "held_out"

#: The smallest weight, so that a round in which nobody scores is a plain mean.
_LEAST = 1e-3


def split(examples: Sequence[Any], share: float, client: str) -> tuple[Sequence[Any], list[Any]]:
    """Return the examples that a client trains on, and those that it holds out, always the same ones.

    Of two or more examples at least one is held out, and at least one is trained on.

    Args:
        examples: D_k.
        share: the share to hold out; 0 holds out nothing.
        client: the client's id.

    >>> split("abcd", 0.5, "0") == split("abcd", 0.5, "0"), [len(part) for part in split("abcd", 0.5, "0")]
    (True, [2, 2])
    """
    if not share or len(examples) < 2:
        return examples, []
    count = min(max(1, round(share * len(examples))), len(examples) - 1)
    chosen = set(random.Random(derive_seed(0, HELD_OUT, client)).sample(range(len(examples)), count))
    kept = [example for i, example in enumerate(examples) if i not in chosen]
    return kept, [examples[i] for i in sorted(chosen)]


def joined(score: Score | None, own: Score) -> Score:
    """Return a client's score with that on its held-out examples as a further metric, or as the only one.

    Args:
        score: the score on the test examples; None if it was not asked for.
        own: the score on the held-out examples.

    >>> joined(Score({"acc": 1.0}, 2), Score({"acc": 3.0}, 4)).sums
    {'acc': 1.0, 'held_out': 3.0}
    """
    main = next(iter(own.sums))
    total, count = own.sums[main], own.counts.get(main, own.count)
    if score is None:
        return Score({HELD_OUT: total}, count)
    return Score({**score.sums, HELD_OUT: total}, score.count, counts={**score.counts, HELD_OUT: count})


def only_held_out(score: Score) -> bool:
    """Return whether a score is on held-out examples alone, and says nothing of the test examples."""
    return next(iter(score.sums), None) == HELD_OUT


def weight(update: ClientUpdate) -> float:
    """Return the weight of a client: its score on its held-out examples, from 0.001 to 1."""
    score = update.score
    value = score.mean(HELD_OUT) if score is not None and HELD_OUT in score.sums else 0.0
    return min(max(value, _LEAST), 1.0) if value == value else _LEAST
