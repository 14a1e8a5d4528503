"""Where a prompt lists the choices of its example, so that they can change places."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from fedcollm.modalities.text.examples import TextExample

#: What stands between two choices that are listed on one line.
_BETWEEN = r"\s*(?:[,;/|]\s*(?:or\s|and\s)?|\bor\b|\band\b)\s*"

#: What stands before a choice on a line of its own: a sign, or a letter or number.
_BEFORE = r"^[ \t]*(?:[-*•]|[(\[]?\w{1,2}[)\].:]+)[ \t]+"

#: A choice that says something of other choices, or of where they stand.
_REFERS = re.compile(r"\b(?:above|below|former|latter|preceding|following|previous|these|those)\b", re.IGNORECASE)
_JOINS = re.compile(r"\b(?:both|either|neither|only|all|none|and|or)\b|&|,", re.IGNORECASE)


class Listing(NamedTuple):
    """The choices in a text.

    Attributes:
        spans: start and end of what each choice says, in the order of the choices.
        by_label: whether a choice is known by the label before its text, such as A, which stays where it is.
    """

    spans: tuple[tuple[int, int], ...]
    by_label: bool


def find_listing(text: str, example: TextExample) -> Listing | None:
    r"""Return where a text lists all choices of its example, each exactly once; None if it does not.

    Choices that refer to others ("both A and B", "none of the above") can't change places.

    >>> find_listing("Roses are\nA. red\nB. blue", TextExample("1", "", ("A", "B"), 0, ("A", "B")))
    Listing(spans=((13, 16), (20, 24)), by_label=True)
    """
    choices = example.choices
    if len(choices) < 2 or len(set(choices)) < len(choices):
        return None
    found = _labelled(text, choices)
    if found is not None:
        texts = [text[start:end] for start, end in found]
        return None if any(_refers(one, choices) for one in texts) else Listing(found, True)
    if any(_refers(choice, ()) for choice in choices):
        return None
    found = _lines(text, choices) or _in_a_row(text, choices)
    return None if found is None else Listing(found, False)


def _refers(choice: str, labels: Sequence[str]) -> bool:
    words = "|".join(map(re.escape, labels))
    named = bool(labels) and re.search(rf"(?<!\w)(?:{words})(?!\w)", choice) is not None
    return bool(_REFERS.search(choice)) or (named and bool(_JOINS.search(choice)))


def _only(pattern: str, text: str) -> tuple[int, int] | None:
    """Return start and end of the group of a pattern's only match; None if there is none, or several."""
    found = list(re.finditer(pattern, text, re.MULTILINE))
    return found[0].span(1) if len(found) == 1 else None


def _all(spans: Sequence[tuple[int, int] | None]) -> tuple[tuple[int, int], ...] | None:
    known = tuple(span for span in spans if span is not None)
    return known if len(known) == len(spans) else None


def _labelled(text: str, labels: Sequence[str]) -> tuple[tuple[int, int], ...] | None:
    """Return where the texts after labels such as `A.`, `(A)` or `A:` are, each on a line of its own."""
    return _all([_only(rf"^[ \t]*[(\[]?{re.escape(one)}[)\].:]+[ \t]+(\S.*?)[ \t]*$", text) for one in labels])


def _lines(text: str, choices: Sequence[str]) -> tuple[tuple[int, int], ...] | None:
    """Return where the choices are, each on a line of its own, after a sign, a letter or a number."""
    return _all([_only(rf"{_BEFORE}({re.escape(choice)})[ \t]*$", text) for choice in choices])


def _in_a_row(text: str, choices: Sequence[str]) -> tuple[tuple[int, int], ...] | None:
    """Return where the choices are, in their order, with nothing but commas or the like between them."""
    row = _BETWEEN.join(f"({re.escape(choice)})" for choice in choices)
    found = list(re.finditer(rf"(?<!\w){row}(?!\w)", text))
    return tuple(found[0].span(i + 1) for i in range(len(choices))) if len(found) == 1 else None
