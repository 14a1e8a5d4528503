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
        labels: content to the label of the example that is kept.
        dropped: part of the pool to the number of its examples that were dropped.
        contradictory: number of dropped examples with another label than the one that is kept.
    """

    labels: dict[str, str | None] = field(default_factory=dict[str, "str | None"])
    dropped: Counter[str] = field(default_factory=Counter[str])
    contradictory: int = 0

    def new(self, part: str, examples: Iterable[Any]) -> list[Any]:
        """Return the examples of a part whose content was not met before, and count the others."""
        kept: list[Any] = []
        for example in examples:
            if example.content not in self.labels:
                self.labels[example.content] = example.label
                kept.append(example)
                continue
            self.dropped[part] += 1
            before = self.labels[example.content]
            self.contradictory += None not in (before, example.label) and before != example.label
        return kept

    def notes(self) -> list[str]:
        """Return sentences about what was dropped; none if nothing was."""
        total = sum(self.dropped.values())
        if not total:
            return []
        where = ", ".join(f"{self.dropped[part]} {name}" for part, name in _PARTS.items() if self.dropped[part])
        notes = [f"{_examples(total)} dropped because an equal one is kept: {where}"]
        if self.contradictory:
            notes.append(
                f"{_examples(self.contradictory)} dropped although the equal one that is kept has another label, so "
                "that one of the two labels is wrong"
            )
        return notes


def _examples(count: int) -> str:
    return "1 example was" if count == 1 else f"{count} examples were"


def without_duplicates(pool: Pool) -> tuple[Pool, int, list[str]]:
    """Return a pool of examples with distinct contents, the number of examples dropped, and sentences about them.

    Of several examples with one content, the first one is kept: of the test set, or else of the training data, or else
    of the public, or else of the unlabelled examples.
    """
    seen = _Seen()
    parts = {name: getattr(pool, name) for name in _PARTS}
    kept = {name: None if part is None else seen.new(name, part) for name, part in parts.items()}
    return replace(pool, **kept), sum(seen.dropped.values()), seen.notes()
