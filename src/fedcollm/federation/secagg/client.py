"""A client under secure aggregation: its update leaves it as a masked share of a sum only."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedcollm.errors import RefusalError
from fedcollm.federation.client import Client
from fedcollm.federation.secagg.fixed_point import change, pack, statistics
from fedcollm.federation.secagg.noise import noised
from fedcollm.federation.secagg.protocol import Participant, check_invitation
from fedcollm.federation.secagg.settings import SecureSettings
from fedcollm.messages import ClientUpdate, PhaseAnswer, Request, Session, TrainRequest, payload_digest
from fedcollm.privacy.accounting import ClientPrivacy


@dataclass
class SecureClient:
    """A client that answers in phases, and only to requests of its own session.

    Attributes:
        client: does the training, for one run only.
        settings: what all parties agreed to.
        min_session: fewest invited clients that it agrees to be summed with, itself included.
        signing_key: own long-term key.
        opened: rounds whose sum this client helped to open, see `Participant`.
    """

    client: Client
    settings: SecureSettings
    min_session: int
    signing_key: Ed25519PrivateKey = field(repr=False)
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
        vector, roster = self._vector(request, update, session.threshold), self.settings.roster
        self._participant = Participant(self.client.id, session, vector, self.signing_key, roster, self.opened)
        self._nonce = session.nonce
        return self._participant.advertise()

    def _vector(self, request: TrainRequest, update: ClientUpdate, threshold: int) -> np.ndarray:
        """The update as it is masked, with its share of the noise under client-level privacy."""
        encoding, privacy = self.settings.encoding, self.settings.privacy
        if isinstance(privacy, ClientPrivacy):
            delta = change(update, request.adapter)
            return pack(noised(delta, privacy, encoding.fraction_bits, threshold), statistics(update))
        return encoding.encode_update(update, request.adapter, self.settings.uniform)

    def _checked(self, request: TrainRequest) -> Session:
        """The request's session, if it is one that this client may join."""
        session = request.session
        if session is None or session.round_index != request.round_index:
            raise RefusalError("a plain update was asked for, and this client takes part in secure aggregation only")
        check_invitation(self.client.id, session, self.settings.roster)
        if session.run != self.client.run:
            raise RefusalError(f"a session of run {session.run!r}, and this client is part of {self.client.run!r}")
        if len(session.invited) < self.min_session:
            raise RefusalError(f"{len(session.invited)} clients are invited, fewer than {self.min_session}")
        agreed = {"evaluate": request.evaluate, "agreed": self.settings.to_wire()}
        if session.payload != payload_digest(request.adapter, agreed):
            raise RefusalError("what this client was sent is not what the session says that all clients were sent")
        return session
