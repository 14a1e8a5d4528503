"""Secure aggregation: the server learns the sum of its clients' vectors, and nothing about any single vector.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, Figure 4, in the
variant against an active server. Let U₁ be the clients that advertised keys, and U₂ ⊆ U₁ those that shared their
secrets. A client u ∈ U₂ holds a vector x_u ∈ Z^m mod 2³² and sends

    y_u = x_u + PRG(b_u) + Σ_{v ∈ U₂, v > u} PRG(s_uv) − Σ_{v ∈ U₂, v < u} PRG(s_uv)   mod 2³²

The pairwise masks cancel in the sum. The survivors U₃ ⊆ U₂ are the clients whose y_u arrived. Once t clients have
confirmed the list of survivors, they reveal their shares of b_v for every survivor v, and their shares of the masking
key (from which s_uv is derived) for every other client in U₂. No client reveals both secrets of the same client.

    phase      a client receives                   and answers with
    advertise  the session and θ, to be tuned      its signed public keys, and a commitment to b_u
    share      the public keys of U₁               Shamir shares of b_u and of its masking key, one encrypted pair for
                                                   each other client, and digests of all shares
    mask       the shares that are meant for it    y_u, or whom it accuses of shares that can't be opened
    reveal     who accuses it, if anybody does     the key of each accuser's shares (`boxes` says who is then to blame)
    confirm    the list of survivors               its signature of that list
    unmask     t signatures of the same list       its shares: of b_v for survivors, of masking keys for the others

Assumptions: the roster of signing keys is authentic, fewer than n/3 of the n invited clients collude with the server,
and t > 2n/3. Then no two lists can both be confirmed by t clients, because some honest client would have signed both.
The fields of the session (run, round, clients, digest of what every client was sent) are checked by `SecureClient`.
Differences from Figure 4: secrets are 16-byte seeds from which keys are derived, so that a share is one element of
GF(2¹²⁸). A client commits to b_u, and the public part of its masking key is known, so that a wrong share is noticed.
The digests of the shares, which each receiver checks, tell whether the giver of a wrong share or its owner is to blame.
Each box of shares is encrypted with a key of its own and signed, so that an accusation can be judged.
Primitives: X25519, Ed25519, HKDF-SHA256, ChaCha20, ChaCha20-Poly1305 (from `cryptography`), Shamir (from pycryptodome).
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping, MutableMapping, Sequence

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedcollm.errors import RefusalError
from fedcollm.federation.answered import OpenedRounds
from fedcollm.federation.secagg.boxes import SEED_BYTES, Box, most_revealed
from fedcollm.federation.secagg.masks import commitment, pairwise_mask, private_key, self_mask, share_digests
from fedcollm.messages import Session

#: The content of a protocol message: client id, or the name of its only item, to bytes.
Items = Mapping[str, bytes]

_KEYS_BYTES = (32, 32, 32, 64)  # encryption key, masking key, commitment, signature


def split_keys(packed: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Return the encryption key, the masking key, the commitment and the signature in a client's advertised keys.

    Raises:
        RefusalError: the keys have a wrong length.
    """
    if len(packed) != sum(_KEYS_BYTES):
        raise RefusalError(f"public keys of {len(packed)} bytes, not {sum(_KEYS_BYTES)}")
    return packed[:32], packed[32:64], packed[64:96], packed[96:]


def _verify(key: Ed25519PublicKey | None, signature: bytes, message: bytes, what: str) -> None:
    try:
        if key is None:
            raise RefusalError(f"{what}: no such client in the roster")
        key.verify(signature, message)
    except InvalidSignature as error:
        raise RefusalError(f"{what}: the signature is not that of the roster's key") from error


def verify_keys(client: str, packed: bytes, session: Session, roster: Mapping[str, Ed25519PublicKey]) -> None:
    """Check a client's advertised keys against the roster.

    Args:
        client: id of the client.
        packed: what the client advertised.
        session: the session.
        roster: client id to public signing key.

    Raises:
        RefusalError: the client was not invited, or its signing key in the roster did not sign the keys for this
            session.
    """
    if client not in session.invited:
        raise RefusalError(f"client {client} was not invited")
    *_, signature = split_keys(packed)
    message = _keys_message(session, client, packed[: -len(signature)])
    _verify(roster.get(client), signature, message, f"keys of client {client}")


def _keys_message(session: Session, client: str, body: bytes) -> bytes:
    """Return the bytes that a client signs in `advertise`.

    Args:
        session: the session.
        client: id of the client.
        body: its public keys and its commitment.
    """
    return session.context + b"keys" + json.dumps(client).encode() + body


def survivors_message(session: Session, keys: Items, survivors: Sequence[str]) -> bytes:
    """Return the bytes that a client signs in `confirm`.

    They depend on all keys of U₁, which are fresh in every session, so that no older signature is valid for them.
    """
    seen = hashlib.sha256(b"".join(json.dumps(client).encode() + keys[client] for client in sorted(keys)))
    return session.context + b"survivors" + seen.digest() + json.dumps(list(survivors)).encode()


def check_invitation(client: str, session: Session, roster: Mapping[str, Ed25519PublicKey]) -> None:
    """Refuse a session that is unsafe or not meant for this client.

    Args:
        client: this client's id.
        session: the session, as the server announced it.
        roster: client id to public signing key.

    Raises:
        RefusalError: `Session.check` refuses the session, this client is not invited, or an invited client is not in
            the roster.
    """
    session.check()
    if client not in session.invited:
        raise RefusalError(f"client {client} was not invited to this session")
    if strangers := sorted(set(session.invited) - roster.keys()):
        raise RefusalError(f"client {strangers[0]} is invited, but not in the roster")


class Participant:
    """One client's side of one session. Its public methods are the phases: each may be called once, in this order.

    Only `reveal` may come at any time after `share`.

    Args:
        client: this client's id.
        session: the session, as the server announced it.
        vector: x_u, [m] uint32.
        signing_key: this client's long-term key, whose public part is in the roster.
        roster: id to public signing key of every client of the federation.
        opened: for whom this client has helped to open the sum of which round, kept from session to session. Opening
            a round again for other survivors would reveal the difference of the two sums.
        theta: digest of θ, which the client does not help to open for other survivors in another round either; empty if
            it is not known.

    Raises:
        RefusalError: the session is unsafe or not meant for this client. Every method raises it if it receives
            something that breaks the protocol.
    """

    def __init__(
        self,
        client: str,
        session: Session,
        vector: np.ndarray,
        signing_key: Ed25519PrivateKey,
        roster: Mapping[str, Ed25519PublicKey],
        opened: MutableMapping[str, list[str]],
        theta: str = "",
    ):
        check_invitation(client, session, roster)
        self._client, self._session, self._vector = client, session, vector
        self._signing_key, self._roster = signing_key, roster
        self._opened = OpenedRounds(opened, session.run, session.round_index, theta)
        self._encryption_key = X25519PrivateKey.generate()
        self._masking_seed, self._self_seed = os.urandom(SEED_BYTES), os.urandom(SEED_BYTES)
        self._masking_key = private_key(self._masking_seed, session.context)
        self._phase = "advertise"
        self._keys: dict[str, bytes] = {}  # of U₁, this client's own included
        self._once: dict[str, X25519PrivateKey] = {}  # of this client's box for each other client
        self._shares: dict[str, bytes] = {}  # of U₂: share of b_v, then share of v's masking seed
        self._survivors: list[str] = []  # U₃

    def _enter(self, phase: str) -> None:
        """Begin a phase. No other phase can begin until this one has ended, nor after a refusal.

        Raises:
            RefusalError: another phase comes next.
        """
        expected, self._phase = self._phase, "nothing"
        if expected != phase:
            raise RefusalError(f"phase {phase} was requested, but {expected} comes next")

    def _check_clients(self, clients: Collection[str], known: Collection[str], what: str) -> None:
        """Refuse a message that concerns too few clients, unknown clients, or not this client.

        Args:
            clients: ids of the clients that the message is about.
            known: ids of the clients that it may be about.
            what: what the message holds, for the error's message.
        """
        if not set(clients) <= set(known):
            raise RefusalError(f"{what} of clients that have no part in this session")
        if self._client not in clients:
            raise RefusalError(f"{what} leave out this client itself")
        if len(clients) < self._session.threshold:
            raise RefusalError(f"{what} of {len(clients)} clients only, fewer than {self._session.threshold}")

    def advertise(self) -> dict[str, bytes]:
        """Return this client's signed public keys and its commitment: `keys` to 160 bytes."""
        self._enter("advertise")
        publics = [key.public_key().public_bytes_raw() for key in (self._encryption_key, self._masking_key)]
        body = b"".join(publics) + commitment(self._self_seed, self._session.context)
        signature = self._signing_key.sign(_keys_message(self._session, self._client, body))
        self._keys, self._phase = {self._client: body + signature}, "share"
        return {"keys": body + signature}

    def share(self, keys: Items) -> dict[str, bytes]:
        """Return the shares of this client's secrets, encrypted for each of the other clients, with their digests.

        Of the shares that this client keeps for itself, there are the digests only.

        Args:
            keys: client id to what the client advertised, this client's own keys included.
        """
        self._enter("share")
        self._check_clients(keys, self._session.invited, "keys")
        if keys[self._client] != self._keys[self._client]:
            raise RefusalError("this client's own keys were changed")
        for client, packed in keys.items():
            verify_keys(client, packed, self._session, self._roster)
        publics = [part for packed in keys.values() for part in split_keys(packed)[:3]]
        if len(set(publics)) < len(publics):
            raise RefusalError("two clients advertise the same key")
        self._keys = dict(keys)
        threshold, order = self._session.threshold, sorted(keys)
        parts = [Shamir.split(threshold, len(order), seed, False) for seed in (self._self_seed, self._masking_seed)]
        shares = {client: parts[0][i][1] + parts[1][i][1] for i, client in enumerate(order)}
        self._shares, self._phase = {self._client: shares[self._client]}, "mask"
        self._once = {client: X25519PrivateKey.generate() for client in order if client != self._client}
        own = share_digests(self._session.context, self._client, self._client, shares[self._client])
        boxes = {client: self._sealed(client, once, shares[client]) for client, once in self._once.items()}
        return boxes | {self._client: own}

    def _sealed(self, receiver: str, once: X25519PrivateKey, shares: bytes) -> bytes:
        """Return the box with a client's two shares, encrypted with a key that is used once."""
        public = split_keys(self._keys[receiver])[0]
        return Box(self._session.context, self._client, receiver).seal(shares, once, public, self._signing_key)

    def _opened_box(self, sender: str, box: bytes) -> bytes:
        """Return the two shares in a box, 32 bytes.

        Raises:
            AccusationError: the box is not the sender's for this client, or its shares are not those of the digests.
        """
        if sender == self._client:
            raise RefusalError(f"the shares of client {sender} are malformed")
        return Box(self._session.context, sender, self._client).open(box, self._encryption_key, self._roster[sender])

    def mask(self, boxes: Items) -> dict[str, bytes]:
        """Return the masked vector: `vector` to 4m bytes.

        Args:
            boxes: id of each other client that shared its secrets, to its encrypted shares for this client.

        Raises:
            AccusationError: the shares of a client can't be opened.
        """
        self._enter("mask")
        self._check_clients({*boxes, self._client}, self._keys, "shares")
        for sender, box in boxes.items():
            self._shares[sender] = self._opened_box(sender, box)
        context, words = self._session.context, len(self._vector)
        masked = self._vector + self_mask(self._self_seed, context, words)
        for peer in boxes:
            public = split_keys(self._keys[peer])[1]
            masked += pairwise_mask(self._client, self._masking_key, peer, public, context, words)
        self._vector, self._phase = np.empty(0, np.uint32), "confirm"
        return {"vector": masked.astype("<u4").tobytes()}

    def reveal(self, accusers: Items) -> dict[str, bytes]:
        """Return the key of the box for each client that accuses this one: client id to 32 bytes.

        Args:
            accusers: its keys are the ids of the accusers; its values are ignored.

        Raises:
            RefusalError: there are more of them than may learn what they were sent, or it was asked before.
        """
        once, self._once = self._once, {}
        most = most_revealed(len(self._session.invited), self._session.threshold)
        if not set(accusers) <= once.keys() or len(accusers) > most:
            raise RefusalError(f"the keys of {len(accusers)} boxes were asked for; at most {most} are given, once")
        return {client: once[client].private_bytes_raw() for client in accusers}

    def confirm(self, survivors: Items) -> dict[str, bytes]:
        """Return this client's signature of the list of survivors: `signature` to 64 bytes.

        Args:
            survivors: its keys are the ids of the survivors; its values are ignored.
        """
        self._enter("confirm")
        self._check_clients(survivors, self._shares, "survivors")
        self._survivors = sorted(survivors)
        self._opened.check(self._survivors)
        self._phase = "unmask"
        return {"signature": self._signing_key.sign(survivors_message(self._session, self._keys, self._survivors))}

    def unmask(self, signatures: Items) -> dict[str, bytes]:
        """Return, for each client that shared its secrets, a share of b_v if it survived, else of its masking seed.

        Args:
            signatures: id of each of at least t survivors, to its signature of the list of survivors.

        Returns:
            Client id to 16 bytes.
        """
        self._enter("unmask")
        self._check_clients({*signatures, self._client}, self._survivors, "signatures")
        if len(signatures) < self._session.threshold:
            raise RefusalError(f"{len(signatures)} signatures, fewer than {self._session.threshold}")
        message = survivors_message(self._session, self._keys, self._survivors)
        for client, signature in signatures.items():
            _verify(self._roster.get(client), signature, message, f"survivors, as client {client} saw them")
        self._opened.check(self._survivors)
        self._opened.note(self._survivors)
        return {
            client: share[:SEED_BYTES] if client in self._survivors else share[SEED_BYTES:]
            for client, share in self._shares.items()
        }
