"""A check of the clients' mean on labelled public examples, which works without seeing any single update.

It is what is left to a server under secure aggregation: a sum that makes the global SLM worse is thrown away as a
whole, and who made it so stays unknown. Sums over random groups of clients would tell, but a rejected round leaves θ as
it was, so that the groups of several rounds give many sums of nearly the same updates: enough of them, and every
client's own update can be solved for. No sum is opened over fewer clients than each client was promised.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from fedcollm.errors import SpoiledRoundError
from fedcollm.federation.aggregation.base import Aggregate, Aggregator, Ask
from fedcollm.federation.statistics import asked_for
from fedcollm.messages import Adapter, TrainRequest

_UNCHECKED = (
    "federation.max_drop could not check the clients' mean, which is used as it is: the small model's score on the "
    "labelled public examples is not a number, even without the mean"
)


@dataclass(frozen=True)
class CheckedAggregator:
    """An aggregator that rejects a mean with which the global SLM scores worse on labelled public examples.

    If the score of θ is NaN, there is nothing to compare with: the mean is accepted, and a note says so.

    Attributes:
        inner: combines the clients' updates.
        score: returns the main metric of the SLM with an adapter on these examples.
        max_drop: the largest drop of this score, from θ to the mean, that is accepted.
    """

    inner: Aggregator
    score: Callable[[Adapter], float] = field(repr=False)
    max_drop: float

    def aggregate(self, ask: Ask, request: TrainRequest, clients: Sequence[str]) -> Aggregate:
        """Ask clients to train, and return the mean of their updates; see `Aggregator`.

        Raises:
            SpoiledRoundError: the mean is rejected. The error has what else is known of the round.
        """
        aggregate = self.inner.aggregate(ask, request, clients)
        if asked_for(request):
            return aggregate
        before, after = self.score(request.adapter), self.score(aggregate.adapter)
        if math.isnan(before):  # nothing to compare with, so that no mean could ever pass
            return replace(aggregate, notes=(*aggregate.notes, _UNCHECKED))
        if after >= before - self.max_drop:
            return aggregate
        raise SpoiledRoundError(
            f"round {request.round_index}: the clients' mean is rejected, since the small model with it scores "
            f"{after:.3f} on the labelled public examples, and {before:.3f} without it. That is a drop of more than "
            f"federation.max_drop {self.max_drop:g}. The run goes on without this round. If it happens again, let each "
            "client look at its own data.",
            aggregate.culprits,
            aggregate.lost,
        )

    def bytes_up(self, theta: Adapter, clients: Sequence[str]) -> int | None:
        """Return the bytes that one of these clients sends, on average; None if they are only known afterward."""
        return self.inner.bytes_up(theta, clients)
