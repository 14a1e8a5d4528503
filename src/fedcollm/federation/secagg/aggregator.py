"""The server's side of a round under secure aggregation: from requests to the mean, by way of a sum."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedcollm.errors import RoundFailedError
from fedcollm.federation.aggregation.validation import NO_UPDATE, Aggregate, with_client_failures
from fedcollm.federation.secagg.fixed_point import STATISTICS, FixedPoint
from fedcollm.federation.secagg.protocol import Items
from fedcollm.federation.secagg.server import collect_sum
from fedcollm.messages import (
    Adapter,
    Answer,
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
from fedcollm.privacy.accounting import Privacy

Ask = Callable[[Mapping[str, Request]], Iterable[Answer]]


@dataclass(frozen=True)
class SecureSettings:
    """What the server must know for secure aggregation.

    Attributes:
        encoding: of the clients' vectors.
        roster: id to public signing key.
        threshold: t; None: the smallest above 2n/3.
        uniform: clients weigh the same; always so under privacy.
        privacy: of the clients.
    """

    encoding: FixedPoint
    roster: Mapping[str, Ed25519PublicKey] = field(repr=False)
    threshold: int | None = None
    uniform: bool = False
    privacy: Privacy | None = None


def aggregate_securely(ask: Ask, request: TrainRequest, ids: Sequence[str], settings: SecureSettings) -> Aggregate:
    """Train these clients, and learn the mean of their updates and sums of their statistics, nothing of a single one.

    Args:
        ask: a transport's.
        request: the round's, without a session.
        ids: clients to invite.
        settings: of the federation.

    Raises:
        RefusalError: fewer than three clients, or an unsafe threshold.
        RoundFailedError: fewer than t clients are left in a phase, or a share is wrong.
    """
    encoding = settings.encoding
    if len(ids) > encoding.clients:
        raise RoundFailedError(f"{len(ids)} clients are asked, and the fixed point is set up for {encoding.clients}")
    payload = payload_digest(request.adapter, request.evaluate, encoding, settings.uniform, settings.privacy)
    session = Session.fresh(request.run, request.round_index, ids, settings.threshold, payload)
    session.check()
    traffic = _Traffic(ask, session.nonce)
    keys = {client: items["keys"] for client, items in traffic.advertise(request, session) if "keys" in items}
    shapes = {name: tuple(tensor.shape) for name, tensor in request.adapter.items()}
    names = STATISTICS[:1] if settings.privacy else STATISTICS
    words = encoding.words(shapes, len(names))
    with with_client_failures(traffic.reasons):
        total = collect_sum(traffic.exchange, session, keys, settings.roster, words)
    mean = _mean(total.vector, total.survivors, request, encoding, settings.uniform, names)
    return replace(
        mean,
        lost={client: traffic.reasons.get(client, phase) for client, phase in total.lost.items()},
        bytes_up=traffic.up // len(ids),
        bytes_down=traffic.down // len(ids),
    )


def simulate_quantization(
    updates: Iterable[ClientUpdate], request: TrainRequest, encoding: FixedPoint, uniform: bool
) -> Aggregate:
    """The mean of plain updates, rounded as secure aggregation rounds it: the same bits, without masks.

    Raises:
        RangeError: a value or a weight is outside the fixed-point range.
        RoundFailedError: no updates.
    """
    total, clients = np.zeros(0, np.uint32), []
    for update in updates:
        vector = encoding.encode_update(update, request.adapter, uniform)
        total = total + vector if clients else vector
        clients.append(update.client)
    if not clients:
        raise RoundFailedError(NO_UPDATE)
    return _mean(total, tuple(clients), request, encoding, uniform, STATISTICS)


def _mean(
    total: np.ndarray,
    clients: tuple[str, ...],
    request: TrainRequest,
    encoding: FixedPoint,
    uniform: bool,
    names: Sequence[str],
) -> Aggregate:
    """The mean that a sum of vectors stands for.

    Raises:
        RoundFailedError: its statistics can't be those of these clients.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in request.adapter.items()}
    changes, sums = encoding.decode(total, shapes, names)
    count, examples = len(clients), sums.get("examples", len(clients))
    if sums["clients"] != count or examples < count:
        raise RoundFailedError(
            f"round {request.round_index}: the sums of {count} clients speak of {sums['clients']:g} clients and "
            f"{examples:g} examples, so one of them is faulty. The last good state is kept."
        )
    weight = count if uniform else examples
    adapter: Adapter = {
        name: (theta.double() + changes[name] / weight).to(theta.dtype) for name, theta in request.adapter.items()
    }
    return Aggregate(
        adapter,
        loss=sums["loss"] / examples if "loss" in sums else None,
        clients_score=sums["score"] / sums["scored"] if sums.get("scored") else None,
        seconds={name.removeprefix("seconds_"): value for name, value in sums.items() if name.startswith("seconds_")},
        participants=clients,
    )


class _Traffic:
    """Carries a session's items by a transport, and counts their bytes."""

    def __init__(self, ask: Ask, nonce: str):
        self._ask, self._nonce = ask, nonce
        self.up = self.down = 0
        self.reasons: dict[str, str] = {}

    def advertise(self, request: TrainRequest, session: Session) -> Iterator[tuple[str, Items]]:
        invitation = replace(request, session=session)
        self.down += adapter_bytes(request.adapter) * len(session.invited)
        yield from self._answers("advertise", dict.fromkeys(session.invited, invitation))

    def exchange(self, phase: str, items: Mapping[str, Items]) -> Iterator[tuple[str, Items]]:
        self.down += sum(_size(values) for values in items.values())
        requests = {client: PhaseRequest(phase, self._nonce, values) for client, values in items.items()}
        yield from self._answers(phase, requests)

    def _answers(self, phase: str, requests: Mapping[str, Request]) -> Iterator[tuple[str, Items]]:
        for answer in self._ask(requests):
            if isinstance(answer, Failure):
                self.reasons[answer.client] = readable(f"{phase}: {answer.reason}")
            if isinstance(answer, PhaseAnswer) and answer.nonce == self._nonce:
                self.up += _size(answer.items)
                yield answer.client, answer.items


def _size(items: Items) -> int:
    return sum(len(name) + len(value) for name, value in items.items())
