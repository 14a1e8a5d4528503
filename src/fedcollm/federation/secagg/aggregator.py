"""The server's side of a round under secure aggregation: from requests to a sum of updates, and to their mean."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedcollm.errors import RoundFailedError, SpoiledRoundError
from fedcollm.federation.aggregation.base import NO_UPDATE, Aggregate, Ask
from fedcollm.federation.aggregation.plain import PlainAggregator
from fedcollm.federation.aggregation.validation import with_client_failures
from fedcollm.federation.secagg.fixed_point import STATISTICS, FixedPoint
from fedcollm.federation.secagg.opening import Opening, SecureSum
from fedcollm.federation.secagg.protocol import Items
from fedcollm.federation.secagg.server import collect_sum
from fedcollm.federation.secagg.settings import SecureSettings
from fedcollm.federation.statistics import asked_for
from fedcollm.messages import (
    LARGEST_LOSS,
    MOST_EXAMPLES,
    MOST_SECONDS,
    Adapter,
    ClientUpdate,
    Failure,
    PhaseAnswer,
    PhaseRequest,
    Request,
    Session,
    TrainRequest,
    adapter_bytes,
    norm,
    payload_digest,
    readable,
)
from fedcollm.privacy.accounting import ClientPrivacy, Privacy

_SECONDS = ("seconds_clients", "seconds_evaluation")
_NORM_ROOM = 1.0 + 1e-4  # for the rounding of the sum


@dataclass(frozen=True)
class SecureAggregator:
    """An aggregator that learns the mean of the clients' updates, and nothing about any single update.

    Attributes:
        settings: what all parties of the federation agreed on.
        journal: file for the sum that is being opened, so that it outlives the server's process; None for no file.
    """

    settings: SecureSettings
    journal: Path | None = None

    def aggregate(self, ask: Ask, request: TrainRequest, clients: Sequence[str]) -> Aggregate:
        """Ask these clients to train in one session, and return the mean of their updates; see `Aggregator`.

        Raises:
            RefusalError: there are fewer than three clients, or the threshold is unsafe.
            RoundFailedError: fewer than t clients are left after a phase.
            SpoiledRoundError: the sum can't be opened any more, or can't be that of honest clients.
        """
        settings, encoding = self.settings, self.settings.encoding_of(request)
        if len(clients) > encoding.clients:
            raise RoundFailedError(
                f"{len(clients)} clients are asked, and the fixed point is set up for {encoding.clients}. Set it up "
                "for the largest number of clients in a round."
            )
        payload = payload_digest(request.adapter, {"evaluate": request.evaluate, "agreed": settings.to_wire()})
        threshold = settings.threshold_of(len(clients))
        session = Session.fresh(request.run, request.round_index, clients, threshold, payload)
        session.check()
        opening = Opening.read(self.journal, payload, request.round_index)
        names = STATISTICS[:1] if settings.privacy else STATISTICS
        total = opening.sum or self._open(ask, request, session, opening, len(names))
        bounds = _Bounds(encoding, settings.uniform, settings.privacy, settings.max_update_norm)
        mean = _Sum(bounds, names).mean(total.vector, total.survivors, request)
        up, down = opening.bytes_moved
        reasons = {client: reason for client, reason in opening.reasons.items() if client not in total.culprits}
        lost = {client: reasons.get(client, phase) for client, phase in total.lost.items()}
        mean = replace(mean, lost=lost, culprits=total.culprits)
        return replace(mean, bytes_up=up // len(clients), bytes_down=down // len(clients))

    def _open(self, ask: Ask, request: TrainRequest, session: Session, opening: Opening, statistics: int) -> SecureSum:
        """Return the sum of the clients' vectors, with a number of statistics at its head."""
        traffic = _Traffic(ask, session.nonce, opening)
        keys = {client: items["keys"] for client, items in traffic.advertise(request, session) if "keys" in items}
        words = self.settings.encoding_of(request).words(_shapes(request.adapter), statistics)
        with with_client_failures(opening.reasons):
            return collect_sum(traffic.exchange, session, keys, self.settings.roster, words, opening)

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

    looks: ClassVar[bool] = False  # secure aggregation could not

    def bytes_up(self, theta: Adapter, clients: Sequence[str]) -> int:
        """Return the size of a client's vector in bytes; masking adds the keys and shares of secure aggregation."""
        return 4 * self.encoding.words(_shapes(theta), len(STATISTICS))

    def combine(self, updates: Iterable[ClientUpdate], request: TrainRequest) -> Aggregate:
        """Return the mean of valid updates.

        Raises:
            RangeError: a value or a weight is outside the fixed-point range.
            RoundFailedError: there are no updates.
        """
        total, clients, uniform = np.zeros(0, np.uint32), list[str](), not self.settings.weighted
        encoding = self.encoding.whole if asked_for(request) else self.encoding
        for update in updates:
            vector = encoding.encode_update(update, request.adapter, uniform)
            total = total + vector if clients else vector
            clients.append(update.client)
        if not clients:
            raise RoundFailedError(NO_UPDATE)
        bounds = _Bounds(encoding, uniform, None, self.settings.longest_update)
        return _Sum(bounds, STATISTICS).mean(total, tuple(clients), request)


@dataclass(frozen=True)
class _Bounds:
    """What a sum of honest clients' vectors can be.

    Attributes:
        encoding: fixed-point encoding of the vectors.
        uniform: whether all clients have the same weight.
        privacy: differential privacy of the clients; None without it.
        max_update_norm: largest L2 norm of one client's change; it says nothing about sums with noise in them.
    """

    encoding: FixedPoint
    uniform: bool
    privacy: Privacy | None
    max_update_norm: float

    def objection(self, sums: Mapping[str, float], count: int, parameters: int) -> str | None:
        """Return what is wrong with the statistics of a number of clients; None if they can be those of honest ones.

        Args:
            sums: the statistics by name.
            count: the number of clients.
            parameters: the number of values that each of them sent.
        """
        examples, most = sums.get("examples", count), MOST_EXAMPLES if self.uniform else self.encoding.max_weight
        if sums["clients"] != count or not count <= examples <= count * most or examples % 1:
            return f"{sums['clients']:g} clients and {examples:g} examples (at most {most} each)"
        if "examples" not in sums:
            return None
        if not sums["loss"] <= LARGEST_LOSS * examples:
            return f"a mean loss of {sums['loss'] / examples:g}"
        if sums["clipped"] > count * parameters or sums["clipped"] % 1:
            return f"{sums['clipped']:g} values that were clipped"
        if sums["scored"] > count or sums["scored"] % 1 or sums["score"] > sums["scored"]:
            return f"{sums['scored']:g} scores with a sum of {sums['score']:g}"
        return "seconds that no round can take" if max(sums[name] for name in _SECONDS) > count * MOST_SECONDS else None

    def objection_to_changes(self, changes: Adapter, count: int, weight: float, trained: bool) -> str | None:
        """Return what is wrong with a sum of changes; None if it can be that of honest clients.

        Args:
            changes: Σ n_k (θ_k − θ) by tensor name.
            count: number of clients.
            weight: Σ n_k.
            trained: whether they were asked to train, and not for statistics.
        """
        if isinstance(self.privacy, ClientPrivacy):
            return None
        rounding = count / self.encoding.scale
        for name, tensor in changes.items():
            largest = float(tensor.abs().max()) if tensor.numel() else 0.0
            if largest > weight * self.encoding.value_range + rounding:
                mean, most = largest / weight, self.encoding.value_range
                return f"a mean change of {mean:.4g} in {name}, outside the fixed-point range of ±{most:g}"
        total = math.sqrt(sum(norm(tensor) ** 2 for tensor in changes.values())) / weight
        rounded = rounding / weight * math.sqrt(sum(tensor.numel() for tensor in changes.values()))
        if trained and total > self.max_update_norm * _NORM_ROOM + rounded:
            most = f"{self.max_update_norm:g}, from federation.max_update_norm or clip_norm"
            return f"a mean change with an L2 norm of {total:.4g} (at most {most})"
        return None


@dataclass(frozen=True)
class _Sum:
    """How to decode a sum of vectors.

    Attributes:
        bounds: what the sum can be.
        names: names of the statistics in the sum, in their order.
    """

    bounds: _Bounds
    names: Sequence[str]

    def mean(self, total: np.ndarray, clients: tuple[str, ...], request: TrainRequest) -> Aggregate:
        """Return the mean of the updates in a sum.

        Args:
            total: the sum, [m] uint32.
            clients: ids of the clients in the sum.
            request: what they were asked to train.

        Raises:
            SpoiledRoundError: the sum can't be that of honest clients.
        """
        bounds, count = self.bounds, len(clients)
        changes, sums = bounds.encoding.decode(total, _shapes(request.adapter), self.names)
        examples = sums.get("examples", count)
        weight, trained = count if bounds.uniform else examples, not asked_for(request)
        parameters = sum(tensor.numel() for tensor in request.adapter.values())
        reason = bounds.objection(sums, count, parameters)
        reason = reason or bounds.objection_to_changes(changes, count, weight, trained)
        if reason:
            raise SpoiledRoundError(
                f"round {request.round_index}: the sums of {count} clients speak of {reason}, so one of them is "
                "faulty. The run goes on without this round."
            )
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
            notes=self._clipped(request, sums.get("clipped", 0.0) / (count * parameters)),
        )

    def _clipped(self, request: TrainRequest, share: float) -> tuple[str, ...]:
        """Return a sentence about the share of values that were clipped, unless there are none."""
        most = f"±{self.bounds.encoding.value_range:.3g}, weighted as the largest client"
        note = f"round {request.round_index}: {share:.2%} of the changes were clipped to {most}"
        return (f"{note} (federation.secure_aggregation.value_range)",) if share else ()


def _shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in adapter.items()}


class _Traffic:
    """Send the messages of a session through a transport, and count their bytes.

    Args:
        ask: method of a transport that sends requests and yields answers.
        nonce: the session's nonce.
        opening: receives the number of bytes, and why clients failed.
    """

    def __init__(self, ask: Ask, nonce: str, opening: Opening):
        self._ask, self._nonce, self._opening = ask, nonce, opening
        opening.bytes_moved, opening.reasons = (0, 0), {}

    def _count(self, up: int, down: int) -> None:
        before = self._opening.bytes_moved
        self._opening.bytes_moved = before[0] + up, before[1] + down

    def advertise(self, request: TrainRequest, session: Session) -> Iterator[tuple[str, Items]]:
        """Invite the session's clients to train, and yield each client's id with the keys that it advertises."""
        invitation = replace(request, session=session)
        self._count(0, adapter_bytes(request.adapter) * len(session.invited))
        yield from self._answers("advertise", dict.fromkeys(session.invited, invitation))

    def exchange(self, phase: str, items: Mapping[str, Items]) -> Iterator[tuple[str, Items]]:
        """Send each client its items of a phase, and yield each client's id with the items of its answer."""
        self._count(0, sum(_size(values) for values in items.values()))
        requests = {client: PhaseRequest(phase, self._nonce, values) for client, values in items.items()}
        yield from self._answers(phase, requests)

    def _answers(self, phase: str, requests: Mapping[str, Request]) -> Iterator[tuple[str, Items]]:
        """Send requests, yield the answers that belong to this session, and note why clients failed."""
        for answer in self._ask(requests):
            if isinstance(answer, Failure):
                self._opening.reasons[answer.client] = readable(f"{phase}: {answer.reason}")
            if isinstance(answer, PhaseAnswer) and answer.nonce == self._nonce:
                self._count(_size(answer.items), 0)
                yield answer.client, answer.items


def _size(items: Items) -> int:
    return sum(len(name) + len(value) for name, value in items.items())
