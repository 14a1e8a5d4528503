"""Keys and masks of secure aggregation: every cryptographic primitive except signatures, ciphers and secret sharing."""

import hashlib
import json

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedcollm.errors import RefusalError
from fedcollm.privacy.keystream import keystream


def derive(secret: bytes, context: bytes, purpose: bytes) -> bytes:
    """Return a 32-byte key (HKDF-SHA256).

    Args:
        secret: bytes to derive the key from.
        context: bytes that identify the session.
        purpose: bytes that identify what the key is used for.
    """
    return HKDF(SHA256(), 32, salt=context, info=purpose).derive(secret)


def private_key(seed: bytes, context: bytes) -> X25519PrivateKey:
    """Return the masking key that is derived from a seed, which is the secret that clients share."""
    return X25519PrivateKey.from_private_bytes(derive(seed, context, b"masking key"))


def agree(private: X25519PrivateKey, public: bytes, context: bytes, purpose: bytes) -> bytes:
    """Return a 32-byte key that only the owners of the two key pairs can compute (X25519).

    Args:
        private: private key of one owner.
        public: public key of the other owner, 32 bytes.
        context: bytes that identify the session.
        purpose: bytes that identify what the key is used for.

    Raises:
        RefusalError: the public key is a point of low order.
    """
    try:
        return derive(private.exchange(X25519PublicKey.from_public_bytes(public)), context, purpose)
    except ValueError as error:
        raise RefusalError("a public key is not a point of full order") from error


def prg(key: bytes, words: int) -> np.ndarray:
    """Return the ChaCha20 keystream of a key, [words] uint32."""
    return np.frombuffer(keystream(key).update(bytes(4 * words)), dtype="<u4")


def commitment(seed: bytes, context: bytes) -> bytes:
    """Return a commitment to a seed: it binds a client to b_u without revealing b_u."""
    return hashlib.sha256(context + b"self mask" + seed).digest()


def share_digests(context: bytes, owner: str, receiver: str, shares: bytes) -> bytes:
    """Return the digests of the two shares that an owner gives a receiver, 64 bytes.

    A share is 16 random bytes, so that its digest does not reveal it. The digests show who is to blame for a wrong one.

    Args:
        context: bytes that identify the session.
        owner: id of the client whose secrets are shared.
        receiver: id of the client that gets the shares.
        shares: the share of b_u, then the share of the masking seed, 16 bytes each.
    """
    head = context + b"share" + json.dumps([owner, receiver]).encode()
    return b"".join(hashlib.sha256(head + bytes([i]) + shares[16 * i : 16 * i + 16]).digest() for i in range(2))


def self_mask(seed: bytes, context: bytes, words: int) -> np.ndarray:
    """Return PRG(b_u), a client's own mask, [words] uint32."""
    return prg(derive(seed, context, b"self mask"), words)


def pairwise_mask(
    own: str, private: X25519PrivateKey, peer: str, public: bytes, context: bytes, words: int
) -> np.ndarray:
    """Return ±PRG(s_uv), the mask that client `own` adds for client `peer`, [words] uint32.

    The peer adds the same mask with the opposite sign.

    Args:
        own: id of the client that adds the mask.
        private: its masking key.
        peer: id of the other client.
        public: public part of the other client's masking key, 32 bytes.
        context: bytes that identify the session.
        words: m, the length of the mask.
    """
    low, high = sorted((own, peer))
    key = agree(private, public, context, f"pairwise mask {json.dumps([low, high])}".encode())
    mask = prg(key, words)
    return mask if own == low else -mask
