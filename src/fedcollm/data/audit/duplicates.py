"""Find texts that stand there twice, exactly or nearly: by MinHash and locality-sensitive hashing (datasketch)."""

import functools
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from fedcollm.data.audit.extra import audit_library
from fedcollm.data.audit.findings import Finding, Fix, Record, Subject
from fedcollm.data.audit.texts import folded

#: Jaccard similarity of the sets of 4-grams from which two texts are near duplicates.
SIMILAR = 0.85

#: Characters of a gram, and of the shortest text that is compared: of shorter ones, one word makes all the difference.
GRAM, SHORTEST = 4, 20

_PERMUTATIONS = 128
_CROWD = 50  # texts from which they are found by MinHash, and neighbors from which a text is no longer kept

#: Words by which texts that are otherwise alike say something else.
_NUMBERS = re.compile(r"\d+(?:[.,]\d+)*")


def near_texts(texts: Sequence[str]) -> Iterator[tuple[int, int, float]]:
    """Yield each text that is like an earlier one: its position, that of the earliest one, and their similarity.

    Equal texts have a similarity of 1. White space and case don't count. Texts with other numbers are not alike.

    Args:
        texts: the texts; an empty one is like no other.
    """
    normal = [" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in texts]
    groups: dict[tuple[str, ...], _Group] = {}
    first: dict[str, int] = {}
    for i, text in enumerate(normal):
        if not text:
            continue
        if text in first:
            yield i, first[text], 1.0
            continue
        first[text] = i
        if len(text) < SHORTEST:
            continue
        best = groups.setdefault(tuple(numbers(text)), _Group()).nearest(i, grams_of(text))
        if best is not None:
            yield i, *best


class _Group:
    """The texts with the same numbers that are no near duplicates: only with these is a text compared.

    Few texts are compared one by one, and many by MinHash. Where a text has `_CROWD` neighbors already that are similar
    and no near duplicates, it is not kept, so that the time is nearly linear in the number of texts whatever they are;
    a later near duplicate of it may then not be found.
    """

    def __init__(self):
        self._grams: dict[int, set[bytes]] = {}
        self._index: Any = None

    def nearest(self, i: int, grams: set[bytes]) -> tuple[int, float] | None:
        """Return the earliest kept text that is like one, and their similarity; if there is none, keep the text.

        Args:
            i: position of the text.
            grams: its 4-grams.
        """
        index = self._index
        sketch = None if index is None else min_hash(grams)
        near: Collection[int] = self._grams if index is None else sorted(map(int, index.query(sketch)))
        alike = ((j, _jaccard(grams, self._grams[j])) for j in near)
        if (best := next(((j, s) for j, s in alike if s >= SIMILAR), None)) is not None:
            return best
        if sketch is None or len(near) < _CROWD:
            self._keep(i, grams, sketch)
        return None

    def _keep(self, i: int, grams: set[bytes], sketch: Any) -> None:
        self._grams[i] = grams
        if sketch is not None:
            self._index.insert(str(i), sketch)
        elif len(self._grams) >= _CROWD:
            datasketch: Any = audit_library("datasketch")
            self._index = datasketch.MinHashLSH(threshold=SIMILAR - 0.1, num_perm=_PERMUTATIONS)
            for j, kept in self._grams.items():
                self._index.insert(str(j), min_hash(kept))


def grams_of(text: str) -> set[bytes]:
    """Return the 4-grams of a text."""
    return {text[j : j + GRAM].encode("utf-8", "replace") for j in range(len(text) - GRAM + 1)}


def min_hash(grams: set[bytes], permutations: int = _PERMUTATIONS) -> Any:
    """Return datasketch's MinHash of 4-grams, always with the same permutations.

    Raises:
        UserError: datasketch is missing.
    """
    sketch = _blank(permutations).copy()
    sketch.update_batch(sorted(grams))
    return sketch


@functools.cache
def _blank(permutations: int) -> Any:
    """Return a sketch of nothing; to draw its permutations takes longer than to sketch a text."""
    return audit_library("datasketch").MinHash(num_perm=permutations, seed=1)


def _jaccard(one: set[bytes], other: set[bytes]) -> float:
    return len(one & other) / len(one | other)


def numbers(text: str) -> list[str]:
    """Return the numbers in a text, in their order: texts with other ones are not alike."""
    return _NUMBERS.findall(text)


def duplicate_texts(subject: Subject) -> Iterator[Finding]:
    """Yield texts that stand there twice, with the same label or with another one."""
    yield from as_findings(subject.records, near_texts([record.text for record in subject.records]))


def as_findings(records: Sequence[Record], pairs: Iterator[tuple[int, int, float]]) -> Iterator[Finding]:
    """Yield a finding for each pair of records that are alike.

    Args:
        records: the records.
        pairs: position of a record, of an earlier one that it is like, and their similarity, which is 1 if they are
            equal.
    """
    for i, other, similarity in pairs:
        one, earlier = records[i], records[other]
        if None not in (one.label, earlier.label) and folded(str(one.label)) != folded(str(earlier.label)):
            detail = f"like {earlier.place}, but labelled {one.label!r} instead of {earlier.label!r}"
            yield Finding("conflict", i, detail, similarity, other=other)
        elif similarity == 1:
            yield Finding("duplicate", i, f"the same as {earlier.place}", fix=Fix("drop"), other=other)
        else:
            detail = f"{100 * similarity:.0f} % the same as {earlier.place}"
            yield Finding("near_duplicate", i, detail, similarity, Fix("drop"), other)
