"""Name what an example holds so that copies of it, and most near copies, have the same name at every client.

A text is named by the smallest of several hashes of its 4-grams (MinHash, Broder 1997; one band of locality-sensitive
hashing), an image by bits of its perceptual hash, a recording by the signs of random projections of its spectrum
(Charikar 2002). Two parties that never see each other's data must get the same name: so all constants here are part of
what the parties of a federation agree on, as `SCHEME` says.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedcollm.data.audit.duplicates import SHORTEST, grams_of, min_hash, numbers
from fedcollm.data.audit.extra import audit_library
from fedcollm.data.audit.sounds import spectrum
from fedcollm.modalities.vision.images import fingerprint

#: Hashes in the band of a text: near duplicates of Jaccard similarity s have the same name with probability s⁴.
ROWS = 4

#: Bits of a recording's name.
_SIGNS = 16

#: Every which bit of the 64 of a perceptual hash is part of an image's name.
_EVERY = 3

#: Version of all that a name depends on. A profile with another one can't be compared.
SCHEME = "fedcollm-1"

_WORD = re.compile(r"\w+")


def text_name(text: str, literals: Sequence[str] = ()) -> bytes:
    """Return the name of a text. Case, white space and punctuation don't count, and numbers always do.

    Args:
        text: the text.
        literals: what a template has put into every text, in order: it would make all texts alike.

    Raises:
        UserError: datasketch is missing.
    """
    plain = normal(text, literals)
    if len(plain) < SHORTEST:
        return plain.encode("utf-8", "replace")
    smallest = np.asarray(min_hash(grams_of(plain), ROWS).hashvalues, dtype="<u8").tobytes()
    return smallest + "\0".join(numbers(plain)).encode()


def normal(text: str, literals: Sequence[str] = ()) -> str:
    r"""Return the words of a text in lower case, without what a template has put there.

    Args:
        text: the text.
        literals: what stands in the template between its columns, in order; each is left out once.

    >>> normal("Note:  Fracture of the LEFT femur\nChapter:", ("Note:", "Chapter:"))
    'fracture of the left femur'
    """
    plain = _words(text)
    for literal in map(_words, literals):
        plain = f" {plain} ".replace(f" {literal} ", " ", 1).strip() if literal else plain
    return plain


def _words(text: str) -> str:
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def image_name(image: Image.Image) -> bytes:
    """Return the name of an image, which small changes of size and compression mostly leave as it is.

    Raises:
        UserError: imagehash is missing.
    """
    bits: NDArray[np.bool_] = audit_library("imagehash").phash(image).hash
    if not bits.any():
        return fingerprint(image).encode()
    return np.packbits(bits.ravel()[::_EVERY]).tobytes()


def sound_name(samples: NDArray[np.float32]) -> bytes:
    """Return the name of a recording, which its loudness and a little noise mostly leave as they are.

    Args:
        samples: [T].
    """
    heard = spectrum(samples)
    digest = hashlib.shake_256(SCHEME.encode()).digest(_SIGNS * len(heard) // 8)
    signs = 1.0 - 2.0 * np.unpackbits(np.frombuffer(digest, dtype=np.uint8)).reshape(_SIGNS, len(heard))
    return np.packbits(signs @ heard > 0).tobytes()


def bucket(name: bytes, buckets: int) -> int:
    """Return which of `buckets` buckets a name falls into.

    >>> bucket(b"fracture", 64)
    39
    """
    return int.from_bytes(hashlib.sha256(SCHEME.encode() + name).digest()[:8], "big") % buckets
