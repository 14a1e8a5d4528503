"""Drop examples that have the content of another one, and say how many were dropped and from where."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from fedcollm.data.pool import Pool

#: Parts of a pool in the order in which they keep an example that stands in several, with their names in sentences.
_PARTS = {
    "test": "of the test set",
    "train": "of the training data",
    "public": "of the public examples",
    "unlabelled": "of the unlabelled examples",
}


@dataclass
class _Seen:
    """The examples met so far.

    Attributes:
        kept: content to the example that is kept, and the part of the pool that it is of.
        met: number of all examples.
        dropped: part of the pool to the number of its examples that were dropped.
        contradictory: number of dropped examples with another label than the one that is kept.
        pair: the first one of these and the one that is kept in its place, in words; empty if there is none.
    """

    kept: dict[str, tuple[Any, str]] = field(default_factory=dict[str, tuple[Any, str]])
    met: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])
    contradictory: int = 0
    pair: str = ""

    def new(self, part: str, examples: Iterable[Any]) -> list[Any]:
        """Return the examples of a part whose content was not met before, and count the others."""
        new: list[Any] = []
        for example in examples:
            self.met += 1
            content = example.content
            if content not in self.kept:
                self.kept[content] = example, part
                new.append(example)
                continue
            kept, place = self.kept[content]
            self.dropped[part] += 1
            if None not in (kept.label, example.label) and kept.label != example.label:
                self.contradictory += 1
                self.pair = self.pair or f"id {example.id} {_PARTS[part]} (id {kept.id} {_PARTS[place]} is kept)"
        return new

    def notes(self) -> list[str]:
        """Return a sentence about what was dropped; none if nothing was."""
        total = sum(self.dropped.values())
        if not total:
            return []
        where = ", ".join(f"{self.dropped[part]} {name}" for part, name in _PARTS.items() if self.dropped[part])
        were = "was" if total == 1 else "were"
        note = f"{total} of {self.met} examples {were} dropped because another one with the same input is kept: {where}"
        if self.contradictory:
            note += (
                f"; {self.contradictory} of them had another label than the one that is kept, such as {self.pair}, so "
                "that one of the two labels is wrong"
            )
        return [note]


def without_duplicates(pool: Pool) -> tuple[Pool, int, list[str]]:
    """Return a pool of examples with distinct contents, the number of examples dropped, and sentences about them.

    Of several examples with one content, the first one is kept: of the test set, or else of the training data, or else
    of the public, or else of the unlabelled examples.
    """
    seen = _Seen()
    parts = {name: getattr(pool, name) for name in _PARTS}
    kept = {name: None if part is None else seen.new(name, part) for name, part in parts.items()}
    return replace(pool, **kept), sum(seen.dropped.values()), seen.notes()
