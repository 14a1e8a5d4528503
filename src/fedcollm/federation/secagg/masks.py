"""Keys and masks of secure aggregation: every use of a cryptographic primitive but signatures and boxes."""

import hashlib
import json

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedcollm.errors import RefusalError
from fedcollm.privacy.keystream import keystream


def derive(secret: bytes, context: bytes, purpose: bytes) -> bytes:
    """A 32-byte key."""
    return HKDF(SHA256(), 32, salt=context, info=purpose).derive(secret)


def private_key(seed: bytes, context: bytes) -> X25519PrivateKey:
    """The masking key pair that belongs to a shared seed."""
    return X25519PrivateKey.from_private_bytes(derive(seed, context, b"masking key"))


def agree(private: X25519PrivateKey, public: bytes, context: bytes, purpose: bytes) -> bytes:
    """A 32-byte key known to the owners of both key pairs (X25519).

    Raises:
        RefusalError: the public key is of low order.
    """
    try:
        return derive(private.exchange(X25519PublicKey.from_public_bytes(public)), context, purpose)
    except ValueError as error:
        raise RefusalError("a public key is not a point of full order") from error


def prg(key: bytes, words: int) -> np.ndarray:
    """[words] uint32: the ChaCha20 keystream."""
    return np.frombuffer(keystream(key).update(bytes(4 * words)), dtype="<u4")


def commitment(seed: bytes, context: bytes) -> bytes:
    """What binds a client to b_u before anybody knows b_u."""
    return hashlib.sha256(context + b"self mask" + seed).digest()


def self_mask(seed: bytes, context: bytes, words: int) -> np.ndarray:
    """[words] uint32: PRG(b_u)."""
    return prg(derive(seed, context, b"self mask"), words)


def pairwise_mask(
    own: str, private: X25519PrivateKey, peer: str, public: bytes, context: bytes, words: int
) -> np.ndarray:
    """[words] uint32: ±PRG(s_uv), what `own` adds for `peer`; the peer adds the same with the other sign."""
    low, high = sorted((own, peer))
    key = agree(private, public, context, f"pairwise mask {json.dumps([low, high])}".encode())
    mask = prg(key, words)
    return mask if own == low else -mask
