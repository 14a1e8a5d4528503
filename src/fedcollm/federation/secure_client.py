"""A client under secure aggregation: its update leaves it as a masked share of a sum only."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedcollm.errors import RefusalError
from fedcollm.federation.client import Client
from fedcollm.federation.fixed_point import FixedPoint, statistics
from fedcollm.federation.secure_aggregation import Participant
from fedcollm.messages import PhaseAnswer, Request, TrainRequest


@dataclass
class SecureClient:
    """A client that answers in phases, and only to requests of its own session.

    Attributes:
        client: does the training.
        encoding: of its vector.
        uniform: weight 1 instead of the number of examples.
        signing_key: own long-term key.
        roster: id to public signing key of every client.
        opened: rounds whose sum this client helped to open, see `Participant`.
    """

    client: Client
    encoding: FixedPoint
    uniform: bool
    signing_key: Ed25519PrivateKey = field(repr=False)
    roster: Mapping[str, Ed25519PublicKey] = field(repr=False)
    opened: MutableMapping[str, list[str]] = field(repr=False, default_factory=dict)
    _participant: Participant | None = field(init=False, repr=False, default=None)
    _nonce: str = field(init=False, repr=False, default="")

    def answer(self, request: Request) -> PhaseAnswer:
        """Train and advertise keys, or go on with the phases of that session.

        Raises:
            RefusalError: a plain update, another session or a wrong phase is asked for.
            RangeError: the update does not fit the fixed-point range; nothing of it was sent.
        """
        if isinstance(request, TrainRequest):
            items = self._advertise(request)
        else:
            if self._participant is None or request.nonce != self._nonce:
                raise RefusalError("this is not the session that the client is in")
            if request.phase not in ("share", "mask", "confirm", "unmask"):
                raise RefusalError(f"there is no phase {request.phase!r}")
            items = getattr(self._participant, request.phase)(request.items)
        return PhaseAnswer(self.client.id, self._nonce, items)

    def _advertise(self, request: TrainRequest) -> Mapping[str, bytes]:
        session = request.session
        if session is None or session.round_index != request.round_index:
            raise RefusalError("a plain update was asked for, and this client takes part in secure aggregation only")
        session.check()
        update = self.client.train(request)
        delta = {name: tensor - request.adapter[name] for name, tensor in update.adapter.items()}
        weight = 1 if self.uniform else update.examples
        vector = self.encoding.encode(delta, weight, statistics(update))
        self._nonce = session.nonce
        self._participant = Participant(self.client.id, session, vector, self.signing_key, self.roster, self.opened)
        return self._participant.advertise()
