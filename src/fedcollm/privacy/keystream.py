"""Randomness that nobody can predict: a ChaCha20 keystream under a fresh key. The noise of privacy comes from here.

Seeds (`seeding`) are public: whoever knows a run's seed could take noise made from it off again.
"""

import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20


def keystream(key: bytes) -> CipherContext:
    """What encrypts zeros to the ChaCha20 keystream of a 32-byte key, from its start."""
    return Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()


class SecureStream:
    """Random numbers from ChaCha20.

    Args:
        key: 32 bytes; by default fresh from the operating system. Anything else is for tests.
    """

    def __init__(self, key: bytes | None = None):
        self._encryptor = keystream(key or os.urandom(32))

    def words(self, count: int) -> np.ndarray:
        """[count] uint64."""
        return np.frombuffer(self._encryptor.update(bytes(8 * count)), dtype="<u8")

    def uniform(self, count: int) -> np.ndarray:
        """[count] float64, multiples of 2⁻⁵³ from 0 to below 1."""
        return (self.words(count) >> np.uint64(11)) * 2.0**-53
