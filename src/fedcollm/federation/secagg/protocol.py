"""Secure aggregation: the server learns the sum of its clients' vectors, and of a single vector nothing.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, Figure 4, in
the variant against an active server. A client u holds x_u ∈ Z^m mod 2³² and sends, for the clients U₂ that shared keys,

    y_u = x_u + PRG(b_u) + Σ_{v ∈ U₂, v > u} PRG(s_uv) − Σ_{v ∈ U₂, v < u} PRG(s_uv)   mod 2³²

The pairwise masks cancel in the sum. Once the survivors U₃ ⊆ U₂ (those whose y_u arrived) are agreed, t clients give
their shares of b_u for every survivor and of the key behind s_uv for everybody else, never of both for one client.

    phase      a client receives                   and answers
    advertise  the session (with θ, to be tuned)   signed public keys, and a commitment to b_u
    share      all clients' public keys            Shamir shares of b_u and of its masking key, encrypted to each client
    mask       the shares meant for it             y_u
    confirm    the list of survivors               its signature of that list
    unmask     t signatures of the same list       its shares: b_v of survivors v, masking keys of the others

Assumptions: the roster of signing keys is authentic, fewer than n/3 of the n invited clients collude with the server,
t > 2n/3. Then two lists can't both be confirmed by t clients, as some honest client would have signed both. What the
session says (run, round, clients, what all were sent) is checked by its owner, see `secure_client`.
Differences from Figure 4: secrets are 16-byte seeds from which keys are derived, so that a share is one element of
GF(2¹²⁸); b_u is committed to and the masking key's public part is known, so that a wrong share is noticed.
Primitives: X25519, Ed25519, HKDF-SHA256, ChaCha20, ChaCha20-Poly1305 (`cryptography`), Shamir (pycryptodome).
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping, MutableMapping, Sequence

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedcollm.errors import RefusalError
from fedcollm.federation.secagg.masks import agree, commitment, pairwise_mask, private_key, self_mask
from fedcollm.messages import Session

#: A protocol message's content: client id (or the name of the only item) to bytes.
Items = Mapping[str, bytes]

SEED_BYTES = 16
_KEYS_BYTES = (32, 32, 32, 64)  # encryption key, masking key, commitment, signature


def split_keys(packed: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Encryption key, masking key, commitment, signature.

    Raises:
        RefusalError: wrong length.
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

    Raises:
        RefusalError: not invited, unknown, or not signed by the roster's key for this session.
    """
    if client not in session.invited:
        raise RefusalError(f"client {client} was not invited")
    *_, signature = split_keys(packed)
    message = _keys_message(session, client, packed[: -len(signature)])
    _verify(roster.get(client), signature, message, f"keys of client {client}")


def _keys_message(session: Session, client: str, body: bytes) -> bytes:
    """What is signed in `advertise`."""
    return session.context + b"keys" + json.dumps(client).encode() + body


def survivors_message(session: Session, keys: Items, survivors: Sequence[str]) -> bytes:
    """What is signed in `confirm`: it holds all keys of U₁, which are fresh, so that no old signature fits."""
    seen = hashlib.sha256(b"".join(json.dumps(client).encode() + keys[client] for client in sorted(keys)))
    return session.context + b"survivors" + seen.digest() + json.dumps(list(survivors)).encode()


def check_invitation(client: str, session: Session, roster: Mapping[str, Ed25519PublicKey]) -> None:
    """Refuse a session that is unsafe, or not for this client.

    Raises:
        RefusalError: see `Session.check`; or this client is not invited, or another one is not in the roster.
    """
    session.check()
    if client not in session.invited:
        raise RefusalError(f"client {client} was not invited to this session")
    if strangers := sorted(set(session.invited) - roster.keys()):
        raise RefusalError(f"client {strangers[0]} is invited, but not in the roster")


class Participant:
    """One client's side of one session. Its methods are the phases; each may be called once, in this order.

    Args:
        client: own id.
        session: as the server announced it.
        vector: x_u, [m] uint32.
        signing_key: own long-term key, whose public part is in the roster.
        roster: id to public signing key of every client of the federation.
        opened: (run, round) to the survivors whose sum this client has helped to open, kept from session to session:
            a second opening of the same round for other survivors would give away the difference.

    Raises:
        RefusalError: the session is unsafe, or not for this client. So does every method, on a broken protocol.
    """

    def __init__(
        self,
        client: str,
        session: Session,
        vector: np.ndarray,
        signing_key: Ed25519PrivateKey,
        roster: Mapping[str, Ed25519PublicKey],
        opened: MutableMapping[str, list[str]],
    ):
        check_invitation(client, session, roster)
        self._client, self._session, self._vector = client, session, vector
        self._signing_key, self._roster, self._opened = signing_key, roster, opened
        self._encryption_key = X25519PrivateKey.generate()
        self._masking_seed, self._self_seed = os.urandom(SEED_BYTES), os.urandom(SEED_BYTES)
        self._masking_key = private_key(self._masking_seed, session.context)
        self._phase = "advertise"
        self._keys: dict[str, bytes] = {}  # U₁: all that this client has seen advertised, its own among them
        self._shares: dict[str, bytes] = {}  # U₂: share of b_v, then share of v's masking seed
        self._survivors: list[str] = []  # U₃

    def _enter(self, phase: str) -> None:
        """Begin a phase; until it is over, and after a refusal, no other one can begin."""
        expected, self._phase = self._phase, "nothing"
        if expected != phase:
            raise RefusalError(f"phase {phase} is asked for where {expected} comes next")

    def _enough(self, clients: Collection[str], known: Collection[str], what: str) -> None:
        if not set(clients) <= set(known):
            raise RefusalError(f"{what} of clients that have no part in this session")
        if self._client not in clients:
            raise RefusalError(f"{what} leave out this client itself")
        if len(clients) < self._session.threshold:
            raise RefusalError(f"{what} of {len(clients)} clients only, fewer than {self._session.threshold}")

    def advertise(self) -> dict[str, bytes]:
        """Public keys: `keys` to 160 bytes."""
        self._enter("advertise")
        publics = [key.public_key().public_bytes_raw() for key in (self._encryption_key, self._masking_key)]
        body = b"".join(publics) + commitment(self._self_seed, self._session.context)
        signature = self._signing_key.sign(_keys_message(self._session, self._client, body))
        self._keys, self._phase = {self._client: body + signature}, "share"
        return {"keys": body + signature}

    def share(self, keys: Items) -> dict[str, bytes]:
        """Own secrets' shares, encrypted to each of the other clients.

        Args:
            keys: what each client advertised, own keys among them.
        """
        self._enter("share")
        self._enough(keys, self._session.invited, "keys")
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
        self._shares, self._phase = {self._client: shares.pop(self._client)}, "mask"
        return {client: self._box(client, self._client, client).encrypt(bytes(12), share, self._session.context)
                for client, share in shares.items()}  # fmt: skip

    def _box(self, peer: str, sender: str, receiver: str) -> ChaCha20Poly1305:
        """The cipher for one message: its key is used for nothing else, so that a constant nonce is safe."""
        public = split_keys(self._keys[peer])[0]
        purpose = f"shares {json.dumps([sender, receiver])}".encode()
        return ChaCha20Poly1305(agree(self._encryption_key, public, self._session.context, purpose))

    def mask(self, boxes: Items) -> dict[str, bytes]:
        """The masked vector: `vector` to 4m bytes.

        Args:
            boxes: for each other client that shared, its encrypted shares for this one.
        """
        self._enter("mask")
        self._enough({*boxes, self._client}, self._keys, "shares")
        for sender, box in boxes.items():
            try:
                share = self._box(sender, sender, self._client).decrypt(bytes(12), box, self._session.context)
            except InvalidTag as error:
                raise RefusalError(f"the shares of client {sender} were changed") from error
            if sender == self._client or len(share) != 2 * SEED_BYTES:
                raise RefusalError(f"the shares of client {sender} are malformed")
            self._shares[sender] = share
        context, words = self._session.context, len(self._vector)
        masked = self._vector + self_mask(self._self_seed, context, words)
        for peer in boxes:
            public = split_keys(self._keys[peer])[1]
            masked += pairwise_mask(self._client, self._masking_key, peer, public, context, words)
        self._vector, self._phase = np.empty(0, np.uint32), "confirm"
        return {"vector": masked.astype("<u4").tobytes()}

    def confirm(self, survivors: Items) -> dict[str, bytes]:
        """A signature of the list of survivors, which are the keys of `survivors`: `signature` to 64 bytes."""
        self._enter("confirm")
        self._enough(survivors, self._shares, "survivors")
        self._survivors = sorted(survivors)
        self._opened_for()
        self._phase = "unmask"
        return {"signature": self._signing_key.sign(survivors_message(self._session, self._keys, self._survivors))}

    def _opened_for(self) -> str:
        """The round's key in `opened`, after a check that it was not opened for others."""
        name = f"{self._session.run}/{self._session.round_index}"
        if self._opened.get(name, self._survivors) != self._survivors:
            before, index = ", ".join(self._opened[name]), self._session.round_index
            raise RefusalError(f"round {index} was opened before, for other survivors (only {before} may take part)")
        return name

    def unmask(self, signatures: Items) -> dict[str, bytes]:
        """For each client that shared, 16 bytes: the share of b_v of a survivor, else of its masking seed.

        Args:
            signatures: of the list of survivors, by at least t of them.
        """
        self._enter("unmask")
        self._enough({*signatures, self._client}, self._survivors, "signatures")
        if len(signatures) < self._session.threshold:
            raise RefusalError(f"{len(signatures)} signatures, fewer than {self._session.threshold}")
        message = survivors_message(self._session, self._keys, self._survivors)
        for client, signature in signatures.items():
            _verify(self._roster.get(client), signature, message, f"survivors, as client {client} saw them")
        self._opened[self._opened_for()] = self._survivors
        return {
            client: share[:SEED_BYTES] if client in self._survivors else share[SEED_BYTES:]
            for client, share in self._shares.items()
        }
