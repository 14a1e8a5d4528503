"""Unpredictable random numbers for the noise of differential privacy: a ChaCha20 keystream under a fresh key.

The seeds of `seeding.py` are unsuitable because they are public: anyone who knows a run's seed could recompute the
noise and subtract it.
"""

import os
from typing import cast

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray


def keystream(key: bytes) -> CipherContext:
    """Return a ChaCha20 encryptor for a 32-byte key, which turns zero bytes into the keystream from its start."""
    return Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()


class SecureStream:
    """A stream of random numbers from ChaCha20.

    Args:
        key: 32 bytes; by default a fresh key from the operating system. Only tests pass a key.
    """

    def __init__(self, key: bytes | None = None):
        self._encryptor, self._process = keystream(key or os.urandom(32)), os.getpid()

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return [count] uniform random uint64.

        A forked process takes a fresh key: its numbers would otherwise be those of the process that it came from.
        """
        if self._process != os.getpid():
            self._encryptor, self._process = keystream(os.urandom(32)), os.getpid()
        return np.frombuffer(self._encryptor.update(bytes(8 * count)), dtype="<u8")

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return [count] uniform random float64 in [0, 1), which are multiples of 2⁻⁵³."""
        return cast("NDArray[np.float64]", (self.words(count) >> np.uint64(11)) * 2.0**-53)
