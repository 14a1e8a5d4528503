"""What the server asks of aggregation: from a request and the clients' answers to one mean.

The server is handed an `Aggregator` and does not know which one: plain updates (`plain.py`), secure aggregation or a
simulation of its rounding (`secagg/aggregator.py`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fedcollm.messages import Adapter, Answer, Request, TrainRequest

#: A transport's: send each client its request; yield the answers as they come.
Ask = Callable[[Mapping[str, Request]], Iterator[Answer]]

NO_UPDATE = "no client's update could be used; the last good state is kept: --resume tries again"


@dataclass(frozen=True)
class Aggregate:
    """What the server keeps of a round's updates: sums, and no single client's values.

    Attributes:
        adapter: the mean, in θ's dtype.
        loss: mean training loss over examples; None under privacy.
        clients_score: mean over clients of their tuned SLM's score; None if none was asked for, or under privacy.
        seconds: sums over clients by part; empty under privacy.
        participants: ids, in order.
        lost: client id to the phase in which it was lost, or why an answer of it was refused.
        bytes_up: bytes that one client sent, on average over those asked.
        bytes_down: bytes that one client received.
    """

    adapter: Adapter
    loss: float | None
    clients_score: float | None
    seconds: dict[str, float]
    participants: tuple[str, ...]
    lost: Mapping[str, str] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0


class Aggregator(Protocol):
    """Trains clients and combines what they send."""

    def aggregate(self, ask: Ask, request: TrainRequest, clients: Sequence[str]) -> Aggregate:
        """Ask these clients to train, and return the mean of their updates.

        Args:
            ask: of a transport.
            request: θ and the round.
            clients: ids of the clients to ask, in the federation's order.

        Raises:
            RoundFailedError: too few clients gave an update that can be used.
            RefusalError: the round would not protect its clients.
        """
        ...

    def bytes_up(self, theta: Adapter, clients: Sequence[str]) -> int | None:
        """Return the bytes that one of these clients sends, on average; None where it is known only afterwards."""
        ...


class Rule(Protocol):
    """How updates become one adapter: they are added one after the other."""

    def add(self, adapter: Adapter, weight: float) -> None:
        """Add one client's adapter."""
        ...

    def value(self) -> Adapter:
        """Return what all that were added come to."""
        ...
