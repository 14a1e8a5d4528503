"""The server's side of a round under secure aggregation: from requests to a sum of updates, and to their mean."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedcollm.errors import RoundFailedError
from fedcollm.federation.aggregation.base import NO_UPDATE, Aggregate, Ask
from fedcollm.federation.aggregation.plain import PlainAggregator
from fedcollm.federation.aggregation.validation import with_client_failures
from fedcollm.federation.secagg.fixed_point import STATISTICS, FixedPoint
from fedcollm.federation.secagg.protocol import Items
from fedcollm.federation.secagg.server import collect_sum
from fedcollm.federation.secagg.settings import SecureSettings
from fedcollm.messages import (
    Adapter,
    ClientUpdate,
    Failure,
    PhaseAnswer,
    PhaseRequest,
    Request,
    Session,
    TrainRequest,
    adapter_bytes,
    payload_digest,
    readable,
)


@dataclass(frozen=True)
class SecureAggregator:
    """An aggregator that learns the mean of the clients' updates, and nothing about any single update.

    Attributes:
        settings: what all parties of the federation agreed on.
    """

    settings: SecureSettings

    def aggregate(self, ask: Ask, request: TrainRequest, clients: Sequence[str]) -> Aggregate:
        """Ask these clients to train in one session, and return the mean of their updates; see `Aggregator`.

        Raises:
            RefusalError: there are fewer than three clients, or the threshold is unsafe.
            RoundFailedError: fewer than t clients are left after a phase, too many shares are wrong, or the sums can't
                be those of honest clients.
        """
        settings, encoding = self.settings, self.settings.encoding
        if len(clients) > encoding.clients:
            raise RoundFailedError(
                f"{len(clients)} clients are asked, and the fixed point is set up for {encoding.clients}. Set it up "
                "for the largest number of clients in a round."
            )
        payload = payload_digest(request.adapter, {"evaluate": request.evaluate, "agreed": settings.to_wire()})
        session = Session.fresh(request.run, request.round_index, clients, settings.threshold, payload)
        session.check()
        traffic = _Traffic(ask, session.nonce)
        keys = {client: items["keys"] for client, items in traffic.advertise(request, session) if "keys" in items}
        names = STATISTICS[:1] if settings.privacy else STATISTICS
        words = encoding.words(_shapes(request.adapter), len(names))
        with with_client_failures(traffic.reasons):
            total = collect_sum(traffic.exchange, session, keys, settings.roster, words)
        mean = _Sum(encoding, settings.uniform, names).mean(total.vector, total.survivors, request)
        return replace(
            mean,
            lost={client: traffic.reasons.get(client, phase) for client, phase in total.lost.items()},
            bytes_up=traffic.up // len(clients),
            bytes_down=traffic.down // len(clients),
        )

    def bytes_up(self, theta: Adapter, clients: Sequence[str]) -> int | None:
        """Return None, because the number of bytes depends on which clients are lost in which phase."""
        return None


@dataclass(frozen=True)
class SimulatedQuantization(PlainAggregator):
    """An aggregator that rounds plain updates as secure aggregation does: its mean has the same bits, without masks.

    Attributes:
        encoding: fixed-point encoding of secure aggregation.
    """

    encoding: FixedPoint = field(kw_only=True)

    def combine(self, updates: Iterable[ClientUpdate], request: TrainRequest) -> Aggregate:
        """Return the mean of valid updates.

        Raises:
            RangeError: a value or a weight is outside the fixed-point range.
            RoundFailedError: there are no updates.
        """
        total, clients, uniform = np.zeros(0, np.uint32), list[str](), not self.settings.weighted
        for update in updates:
            vector = self.encoding.encode_update(update, request.adapter, uniform)
            total = total + vector if clients else vector
            clients.append(update.client)
        if not clients:
            raise RoundFailedError(NO_UPDATE)
        return _Sum(self.encoding, uniform, STATISTICS).mean(total, tuple(clients), request)


@dataclass(frozen=True)
class _Sum:
    """How to decode a sum of vectors.

    Attributes:
        encoding: fixed-point encoding of the vectors.
        uniform: whether all clients have the same weight.
        names: names of the statistics in the sum, in their order.
    """

    encoding: FixedPoint
    uniform: bool
    names: Sequence[str]

    def mean(self, total: np.ndarray, clients: tuple[str, ...], request: TrainRequest) -> Aggregate:
        """Return the mean of the updates in a sum.

        Args:
            total: the sum, [m] uint32.
            clients: ids of the clients in the sum.
            request: what they were asked to train.

        Raises:
            RoundFailedError: the statistics can't be those of these clients.
        """
        changes, sums = self.encoding.decode(total, _shapes(request.adapter), self.names)
        count, examples = len(clients), sums.get("examples", len(clients))
        if sums["clients"] != count or examples < count:
            raise RoundFailedError(
                f"round {request.round_index}: the sums of {count} clients speak of {sums['clients']:g} clients and "
                f"{examples:g} examples, so one of them is faulty. The last good state is kept."
            )
        weight = count if self.uniform else examples
        adapter: Adapter = {
            name: (theta.double() + changes[name] / weight).to(theta.dtype) for name, theta in request.adapter.items()
        }
        return Aggregate(
            adapter,
            loss=sums["loss"] / examples if "loss" in sums else None,
            clients_score=sums["score"] / sums["scored"] if sums.get("scored") else None,
            seconds={n.removeprefix("seconds_"): value for n, value in sums.items() if n.startswith("seconds_")},
            participants=clients,
            examples=round(sums["examples"]) if "examples" in sums else None,
        )


def _shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in adapter.items()}


class _Traffic:
    """Send the messages of a session through a transport, and count their bytes.

    Args:
        ask: method of a transport that sends requests and yields answers.
        nonce: the session's nonce.
    """

    def __init__(self, ask: Ask, nonce: str):
        self._ask, self._nonce = ask, nonce
        self.up = self.down = 0
        self.reasons: dict[str, str] = {}

    def advertise(self, request: TrainRequest, session: Session) -> Iterator[tuple[str, Items]]:
        """Invite the session's clients to train, and yield each client's id with the keys that it advertises."""
        invitation = replace(request, session=session)
        self.down += adapter_bytes(request.adapter) * len(session.invited)
        yield from self._answers("advertise", dict.fromkeys(session.invited, invitation))

    def exchange(self, phase: str, items: Mapping[str, Items]) -> Iterator[tuple[str, Items]]:
        """Send each client its items of a phase, and yield each client's id with the items of its answer."""
        self.down += sum(_size(values) for values in items.values())
        requests = {client: PhaseRequest(phase, self._nonce, values) for client, values in items.items()}
        yield from self._answers(phase, requests)

    def _answers(self, phase: str, requests: Mapping[str, Request]) -> Iterator[tuple[str, Items]]:
        """Send requests, yield the answers that belong to this session, and note why clients failed."""
        for answer in self._ask(requests):
            if isinstance(answer, Failure):
                self.reasons[answer.client] = readable(f"{phase}: {answer.reason}")
            if isinstance(answer, PhaseAnswer) and answer.nonce == self._nonce:
                self.up += _size(answer.items)
                yield answer.client, answer.items


def _size(items: Items) -> int:
    return sum(len(name) + len(value) for name, value in items.items())
