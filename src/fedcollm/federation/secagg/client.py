"""A client under secure aggregation: its update leaves it only as a masked part of a sum."""

import logging
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedcollm.errors import RefusalError
from fedcollm.federation.answered import LastAnswer, OpenedRounds, SentVectors
from fedcollm.federation.client import Client
from fedcollm.federation.secagg.boxes import ACCUSED, AccusationError
from fedcollm.federation.secagg.fixed_point import change, pack, statistics
from fedcollm.federation.secagg.noise import noised
from fedcollm.federation.secagg.protocol import Participant, check_invitation
from fedcollm.federation.secagg.settings import SecureSettings
from fedcollm.messages import (
    ClientUpdate,
    PhaseAnswer,
    PhaseRequest,
    Request,
    Session,
    TrainRequest,
    payload_digest,
    readable,
)
from fedcollm.privacy.accounting import ClientPrivacy
from fedcollm.progress import say


@dataclass
class SecureClient:
    """A client that takes part in one session of secure aggregation at a time, and answers its phases.

    Attributes:
        client: the client that trains, for one run only.
        settings: what all parties agreed on.
        min_session: smallest number of invited clients, this one included, with which it joins a session.
        signing_key: this client's long-term key.
        opened: rounds whose sum this client has helped to open, and for which θ, as in `OpenedRounds`.
        sent: the vector of the last round, which another session of the round gets again, under new masks and without
            new noise. None trains anew, as in a simulation, whose server is not another party.
    """

    client: Client
    settings: SecureSettings
    min_session: int
    signing_key: Ed25519PrivateKey = field(repr=False)
    opened: MutableMapping[str, list[str]] = field(repr=False, default_factory=dict[str, list[str]])
    sent: LastAnswer | None = field(repr=False, default=None)
    _participant: Participant | None = field(init=False, repr=False, default=None)
    _nonce: str = field(init=False, repr=False, default="")

    def answer(self, request: Request) -> PhaseAnswer | ClientUpdate:
        """Carry out a request.

        The first request of a session makes the client train and advertise its keys. Later requests continue with the
        phases of that session. After the last round, a request with `keep` makes the client train and keep the result.

        Raises:
            RefusalError: the request asks for a plain update, or belongs to another session or another phase.
        """
        if isinstance(request, TrainRequest) and request.keep and request.session is None:
            return self.client.keep(request)
        if isinstance(request, TrainRequest):
            items = self._advertise(self.settings.download.received(request))
        else:
            if self._participant is None or request.nonce != self._nonce:
                raise RefusalError("this is not the session that the client is in")
            if request.phase not in ("share", "mask", "reveal", "confirm", "unmask"):
                raise RefusalError(f"there is no phase {request.phase!r}")
            items = self._phase(self._participant, request)
        return PhaseAnswer(self.client.id, self._nonce, items)

    def _phase(self, participant: Participant, request: PhaseRequest) -> Mapping[str, bytes]:
        """Return the answer in a later phase of the session, which may be an accusation."""
        try:
            return getattr(participant, request.phase)(request.items)
        except AccusationError as error:
            say(readable(f"secure aggregation: {error}; this client accuses it"), logging.WARNING)
            return {ACCUSED: error.accused.encode()}

    def _advertise(self, request: TrainRequest) -> Mapping[str, bytes]:
        """Train, join the request's session, and return this client's public keys."""
        session = self._checked(request)
        vector, roster = self._vector_of_round(request, session), self.settings.roster
        who = self.client.id, session, vector, self.signing_key, roster, self.opened
        self._participant = Participant(*who, request.digest)
        self._nonce = session.nonce
        return self._participant.advertise()

    def _vector_of_round(self, request: TrainRequest, session: Session) -> np.ndarray:
        """Return what this client sends in a round, [m] uint32. It trains unless it has sent something before.

        Raises:
            RefusalError: this client has sent something in a later round, or something else in this one, or it is not
                there any more; see also `OpenedRounds.check_order` and `Client.train`.
        """
        opened = OpenedRounds(self.opened, session.run, session.round_index, request.digest)
        opened.check_order()
        if self.sent is None:
            return self._vector(request, self.client.train(request), session.threshold)
        name = self._name_of_vector(session)
        rounds = SentVectors(self.client.spent, session.run)
        if rounds.is_sent(session.round_index, name):
            sent = self.sent.get(name)
            if sent is None:
                raise RefusalError(f"what this client sent in round {session.round_index} is not there any more")
            return np.frombuffer(sent, "<u4").astype(np.uint32)
        vector = self._vector(request, self.client.train(request), session.threshold)
        self.sent.keep(name, vector.astype("<u4").tobytes())
        rounds.note(session.round_index, name)
        return vector

    def _name_of_vector(self, session: Session) -> str:
        """Return what a vector depends on; its noise, if it has any, depends on the threshold too."""
        threshold = session.threshold if isinstance(self.settings.privacy, ClientPrivacy) else 0
        return f"{session.run} {session.round_index} {session.payload} {threshold}"

    def _vector(self, request: TrainRequest, update: ClientUpdate, threshold: int) -> np.ndarray:
        """Return the update as a vector, [m] uint32. Under client-level privacy, it holds a share of the noise."""
        encoding, privacy = self.settings.encoding_of(request), self.settings.privacy
        if isinstance(privacy, ClientPrivacy):
            delta = change(update, request.adapter)
            return pack(noised(delta, privacy, encoding.fraction_bits, threshold), statistics(update))
        return encoding.encode_update(update, request.adapter, self.settings.uniform)

    def _checked(self, request: TrainRequest) -> Session:
        """Return the session of a request.

        Raises:
            RefusalError: this client must not join the session.
        """
        session = request.session
        if session is None or (type(session.round_index), session.round_index) != (int, request.round_index):
            raise RefusalError("a plain update was asked for, and this client takes part in secure aggregation only")
        check_invitation(self.client.id, session, self.settings.roster)
        if session.run != self.client.run:
            raise RefusalError(f"a session of run {session.run!r}, and this client is part of {self.client.run!r}")
        if len(session.invited) < self.min_session:
            raise RefusalError(f"{len(session.invited)} clients are invited, fewer than {self.min_session}")
        if session.threshold != (agreed := self.settings.threshold_of(len(session.invited))):
            raise RefusalError(f"a threshold of {session.threshold} clients, and {agreed} were agreed on")
        sent = {"evaluate": request.evaluate, "agreed": self.settings.to_wire()}
        if session.payload != payload_digest(request.adapter, sent):
            raise RefusalError("what this client was sent is not what the session says that all clients were sent")
        return session
