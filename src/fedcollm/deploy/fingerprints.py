"""Fingerprints that two people compare over the telephone."""

import hashlib
import hmac


def grouped(content: bytes) -> str:
    """Return the SHA-256 of bytes as sixteen groups of four hexadecimal digits.

    >>> grouped(b"")[:24]
    'e3b0 c442 98fc 1c14 9afb'
    """
    digest = hashlib.sha256(content).hexdigest()
    return " ".join(digest[i : i + 4] for i in range(0, len(digest), 4))


def same(one: str, other: str) -> bool:
    """Return whether two fingerprints are the same, however they are grouped, in constant time.

    >>> same("AB-CD ef", "abcdef")
    True
    >>> same("", "")
    False
    """
    digits, wanted = ("".join(sign for sign in text.lower() if sign not in " -:\n\t") for text in (one, other))
    return bool(digits) and hmac.compare_digest(digits.encode(), wanted.encode())
