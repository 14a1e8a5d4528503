"""The interface of aggregation: from a request and the clients' answers to one mean.

The server is given an `Aggregator` and does not know its kind: `PlainAggregator` in `plain.py`, or secure aggregation
and the simulation of its quantization in `secagg/aggregator.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from fedcollm.messages import Adapter, Answer, Request, RoundRecord, TrainRequest

#: `Transport.ask`: send each client its request, and yield the answers as they arrive.
Ask = Callable[[Mapping[str, Request]], Iterator[Answer]]

NO_UPDATE = "no client's update could be used; the last good state is kept, and --resume tries the round again"


@dataclass(frozen=True)
class Aggregate:
    """What the server keeps of the updates of a round: means and sums, and no value of a single client.

    Attributes:
        adapter: the mean of the clients' adapters, in θ's dtypes.
        loss: the mean training loss over all examples; None under privacy.
        clients_score: the mean over clients of the score of their tuned SLM; None if no client was asked for one, or
            under privacy.
        seconds: time spent by part of the round, summed over clients; empty under privacy.
        participants: ids of the clients whose updates are in the mean, in order.
        lost: by the id of each lost client, the reason or the phase in which it was lost.
        bytes_up: bytes that one client sent, averaged over the clients that were asked.
        bytes_down: bytes that one client received.
        examples: the number of examples of the participants; None under privacy.
        culprits: ids of the clients that have proven to be dishonest, which the rounds to come leave out.
        notes: sentences for the record of the round.
    """

    adapter: Adapter
    loss: float | None
    clients_score: float | None
    seconds: dict[str, float]
    participants: tuple[str, ...]
    lost: Mapping[str, str] = field(default_factory=dict[str, str])
    bytes_up: int = 0
    bytes_down: int = 0
    examples: int | None = None
    culprits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def added_to(self, record: RoundRecord) -> RoundRecord:
        """Return the server's record of the round with the results of the clients."""
        seconds = dict(self.seconds)
        seconds["distillation"] = record.seconds["distillation"]
        seconds["evaluation"] = seconds.get("evaluation", 0.0) + record.seconds["evaluation"]
        return replace(
            record,
            scores=dict(record.scores) | ({} if self.clients_score is None else {"clients": self.clients_score}),
            losses=({} if self.loss is None else {"client": self.loss}) | dict(record.losses),
            seconds=seconds,
            participants=self.participants,
            lost=self.lost,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
        )


class Aggregator(Protocol):
    """Asks clients to train, and combines their updates."""

    def aggregate(self, ask: Ask, request: TrainRequest, clients: Sequence[str]) -> Aggregate:
        """Ask clients to train, and return the mean of their updates.

        Args:
            ask: sends requests and yields answers, as `Transport.ask` does.
            request: θ and the index of the round.
            clients: ids of the clients to ask, in the order of the federation.

        Raises:
            RoundFailedError: too few clients sent a valid update.
            RefusalError: the round would not protect its clients.
        """
        ...

    def bytes_up(self, theta: Adapter, clients: Sequence[str]) -> int | None:
        """Return the bytes that one of these clients sends, on average; None if they are only known afterward."""
        ...


class Rule(Protocol):
    """An aggregation rule: it combines adapters that are added one after the other."""

    def add(self, adapter: Adapter, weight: float) -> None:
        """Add one client's adapter."""
        ...

    def value(self) -> Adapter:
        """Return the combination of all adapters that were added."""
        ...
