"""A client under secure aggregation: its update leaves it as a masked share of a sum only."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedcollm.errors import RefusalError
from fedcollm.federation.client import Client
from fedcollm.federation.secagg.fixed_point import FixedPoint, change, pack, statistics
from fedcollm.federation.secagg.noise import noised
from fedcollm.federation.secagg.protocol import Participant, check_invitation
from fedcollm.messages import ClientUpdate, PhaseAnswer, Request, Session, TrainRequest, payload_digest
from fedcollm.privacy.accounting import ClientPrivacy


@dataclass
class SecureClient:
    """A client that answers in phases, and only to requests of its own session.

    Attributes:
        client: does the training, for one run only.
        smallest_session: fewest invited clients that it agrees to be summed with, itself included.
        encoding: of its vector.
        uniform: weight 1 instead of the number of examples.
        signing_key: own long-term key.
        roster: id to public signing key of every client.
        opened: rounds whose sum this client helped to open, see `Participant`.
    """

    client: Client
    smallest_session: int
    encoding: FixedPoint
    uniform: bool
    signing_key: Ed25519PrivateKey = field(repr=False)
    roster: Mapping[str, Ed25519PublicKey] = field(repr=False)
    opened: MutableMapping[str, list[str]] = field(repr=False, default_factory=dict)
    _participant: Participant | None = field(init=False, repr=False, default=None)
    _nonce: str = field(init=False, repr=False, default="")

    def answer(self, request: Request) -> PhaseAnswer | ClientUpdate:
        """Train and advertise keys, or go on with the phases of that session; or train and keep the result.

        Raises:
            RefusalError: a plain update, another session or a wrong phase is asked for.
            RangeError: the update does not fit the fixed-point range; nothing of it was sent.
        """
        if isinstance(request, TrainRequest) and request.keep and request.session is None:
            return self.client.keep(request, tell=False)
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
        session = self._checked(request)
        update = self.client.train(request)
        vector = self._vector(request, update, session.threshold)
        self._participant = Participant(self.client.id, session, vector, self.signing_key, self.roster, self.opened)
        self._nonce = session.nonce
        return self._participant.advertise()

    def _vector(self, request: TrainRequest, update: ClientUpdate, threshold: int) -> np.ndarray:
        """The update as it is masked, with its share of the noise under client-level privacy."""
        privacy = self.client.privacy
        if isinstance(privacy, ClientPrivacy):
            delta = change(update, request.adapter)
            return pack(noised(delta, privacy, self.encoding.fraction_bits, threshold), statistics(update))
        return self.encoding.encode_update(update, request.adapter, self.uniform)

    def _checked(self, request: TrainRequest) -> Session:
        """The request's session, if it is one that this client may join."""
        session = request.session
        if session is None or session.round_index != request.round_index:
            raise RefusalError("a plain update was asked for, and this client takes part in secure aggregation only")
        check_invitation(self.client.id, session, self.roster)
        if session.run != self.client.run:
            raise RefusalError(f"a session of run {session.run!r}, and this client is part of {self.client.run!r}")
        if len(session.invited) < self.smallest_session:
            raise RefusalError(f"{len(session.invited)} clients are invited, fewer than {self.smallest_session}")
        agreed = (self.encoding, self.uniform, self.client.privacy)
        if session.payload != payload_digest(request.adapter, request.evaluate, *agreed):
            raise RefusalError("what this client was sent is not what the session says that all clients were sent")
        return session
