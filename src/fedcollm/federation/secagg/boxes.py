"""The encrypted shares that clients send each other through the server, and who is to blame if one can't open them.

For every box, the sender makes a key pair that it uses once, encrypts two shares to the receiver's key of the session,
and signs all of it. A receiver that can't open a box accuses its sender instead of sending its vector. Either of the
two may lie, so the accused must reveal the private key of that one box: with it, everybody can do what an honest
receiver does (`Box.is_right`). If the box is right, the accuser has lied. If it is not, or no key is revealed, the
accused has. So a client gets nobody left out but itself, unless an honest one that it accuses dies before it answers.

A revealed key gives away the two shares of the accuser. Fewer than n/3 clients are dishonest, so a client that is
accused by more than `most_revealed` is guilty, and an honest one reveals no more than that. The server, together with
all dishonest clients, then has fewer than t shares of each of its secrets.
"""

import json
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedcollm.errors import RefusalError
from fedcollm.federation.secagg.masks import agree, share_digests

#: The only item of an answer in phase `mask` that is an accusation; it holds the id of the accused.
ACCUSED = "accused"

SEED_BYTES = 16
DIGEST_BYTES = 64  # of the two shares of one receiver
_KEY_BYTES, _SEALED_BYTES, _SIGNATURE_BYTES = 32, 2 * SEED_BYTES + 16, 64
BOX_BYTES = _KEY_BYTES + _SEALED_BYTES + _SIGNATURE_BYTES + DIGEST_BYTES


class AccusationError(RefusalError):
    """The shares of another client can't be opened.

    Attributes:
        accused: id of that client.
    """

    def __init__(self, accused: str, message: str):
        super().__init__(message)
        self.accused: str = accused


def most_revealed(invited: int, threshold: int) -> int:
    """Return how many of its boxes a client may reveal: with those of fewer than n/3 others, they are fewer than t.

    >>> [most_revealed(n, 2 * n // 3 + 1) for n in (3, 4, 5, 6, 10)]
    [2, 1, 2, 3, 3]
    """
    return threshold - 1 - (invited - 1) // 3


@dataclass(frozen=True)
class Box:
    """The place of one box: who sends it to whom, in which session.

    Its bytes are the public key that is used once, the encrypted shares, the signature and the digests of the shares.

    Attributes:
        context: bytes that identify the session.
        sender: id of the client that sends the shares.
        receiver: id of the client that they are meant for.
    """

    context: bytes
    sender: str
    receiver: str

    def seal(self, shares: bytes, once: X25519PrivateKey, receiver_key: bytes, signing_key: Ed25519PrivateKey) -> bytes:
        """Return the bytes of the box.

        Args:
            shares: the share of b_u, then the share of the masking seed, 16 bytes each.
            once: a key that is used for this box alone.
            receiver_key: the receiver's public key, 32 bytes.
            signing_key: the sender's long-term key.
        """
        sealed = self._cipher(once, receiver_key).encrypt(bytes(12), shares, self.context)
        public, digests = once.public_key().public_bytes_raw(), self._digests(shares)
        return public + sealed + signing_key.sign(self._signed(public + sealed, digests)) + digests

    def open(self, data: bytes, key: X25519PrivateKey, signer: Ed25519PublicKey) -> bytes:
        """Return the two shares, 32 bytes.

        Args:
            data: the bytes of the box.
            key: the receiver's private key.
            signer: the sender's key in the roster.

        Raises:
            AccusationError: the sender did not sign this for this receiver, or it can't be opened, or the shares are
                not those of the digests.
        """
        if len(data) != BOX_BYTES:
            raise AccusationError(self.sender, f"the shares of client {self.sender} are malformed")
        if not self.is_signed(data, signer):
            raise AccusationError(self.sender, f"the shares of client {self.sender} were changed")
        reason = "can't be opened"
        try:
            shares = self._cipher(key, data[:_KEY_BYTES]).decrypt(bytes(12), self._sealed(data), self.context)
            if self._digests(shares) == data[-DIGEST_BYTES:]:
                return shares
            reason = "are not those that it promised"
        except (InvalidTag, RefusalError):
            pass
        raise AccusationError(self.sender, f"the shares of client {self.sender} {reason}")

    def is_signed(self, data: bytes, signer: Ed25519PublicKey) -> bool:
        """Return whether the sender has signed the box."""
        at = _KEY_BYTES + _SEALED_BYTES
        try:
            signer.verify(data[at : at + _SIGNATURE_BYTES], self._signed(data[:at], data[-DIGEST_BYTES:]))
        except InvalidSignature:
            return False
        return True

    def is_right(self, data: bytes, revealed: bytes, receiver_key: bytes) -> bool:
        """Return whether the receiver can open the box, as the sender's key of this one box shows.

        Args:
            data: the bytes of the box, which the sender has signed.
            revealed: the private key that the sender has revealed.
            receiver_key: the receiver's public key, 32 bytes.
        """
        try:
            once = X25519PrivateKey.from_private_bytes(revealed)
            if once.public_key().public_bytes_raw() != data[:_KEY_BYTES]:
                return False
            shares = self._cipher(once, receiver_key).decrypt(bytes(12), self._sealed(data), self.context)
        except (ValueError, InvalidTag, RefusalError):
            return False
        return self._digests(shares) == data[-DIGEST_BYTES:]

    def _cipher(self, private: X25519PrivateKey, public: bytes) -> ChaCha20Poly1305:
        """Return the cipher of the box. Its key is used for this one message, so that a constant nonce is safe."""
        return ChaCha20Poly1305(agree(private, public, self.context, b"shares " + self._names))

    def _digests(self, shares: bytes) -> bytes:
        return share_digests(self.context, self.sender, self.receiver, shares)

    def _signed(self, head: bytes, digests: bytes) -> bytes:
        return self.context + b"box" + self._names + head + digests

    @staticmethod
    def _sealed(data: bytes) -> bytes:
        return data[_KEY_BYTES : _KEY_BYTES + _SEALED_BYTES]

    @property
    def _names(self) -> bytes:
        return json.dumps([self.sender, self.receiver]).encode()
