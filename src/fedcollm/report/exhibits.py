"""Arrange the test examples of a run for the page: those that the small model got wrong first, then the others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedcollm.config.roles import ROLES
from fedcollm.modalities.exhibits import Answer, Exhibit, Region
from fedcollm.report.formats import amount
from fedcollm.report.runs import Run

#: Status of a word to what a screen reader says before it.
SPOKEN = {
    "deleted": "not heard:",
    "inserted": "heard but not said:",
    "replaced": "said:",
    "replacement": "heard instead:",
}


@dataclass(frozen=True)
class Said:
    """The answer of one model.

    Attributes:
        model: name of the model.
        answer: its answer.
        words: the answer in words.
        mark: whether it is right, in words; empty if that is not known.
        before: its answer before any training, in words; empty if that is not known.
        mark_before: whether that one is right, in words; empty if that is not known.
    """

    model: str
    answer: Answer
    words: str
    mark: str
    before: str = ""
    mark_before: str = ""


@dataclass(frozen=True)
class Card:
    """One example.

    Attributes:
        exhibit: the example.
        said: the models' answers.
        alt: description of the picture, for people who can't see it.
    """

    exhibit: Exhibit
    said: list[Said]
    alt: str


def left_out(before: Sequence[Exhibit], after: Sequence[Exhibit]) -> str:
    """Return how many examples have lost their picture, as the beginning of a sentence; empty if none has."""
    lost = sum(bool(one.picture) for one in before) - sum(bool(one.picture) for one in after)
    return f"{amount(lost, 'example')} {'is' if lost == 1 else 'are'}" if lost else ""


def shown(run: Run, exhibits: Sequence[Exhibit]) -> list[tuple[str, list[Card]]]:
    """Return examples of a run in groups, each with its heading; groups without examples are left out."""
    groups: dict[bool | None, list[Card]] = {False: [], True: [], None: []}
    for exhibit in exhibits:
        answer = exhibit.answers.get("slm")
        groups[answer.right if answer else None].append(
            Card(exhibit, list(_said(exhibit, run.first_answers.get(exhibit.id, {}))), _alt(exhibit))
        )
    slm = ROLES["slm"].label.lower()
    headings = {
        False: f"Wrong answers of the {slm}",
        True: f"Right answers of the {slm}",
        None: "Answers of both models",
    }
    return [(headings[right], cards) for right, cards in groups.items() if cards]


def _said(exhibit: Exhibit, first: Mapping[str, Answer]) -> Iterator[Said]:
    for role, answer in exhibit.answers.items():
        if role not in ROLES:
            continue
        start = first.get(role)
        before = ("", "") if start is None else (_in_words(start), _mark(start))
        yield Said(ROLES[role].label, answer, _in_words(answer), _mark(answer), *before)


def _mark(answer: Answer) -> str:
    return "" if answer.right is None else "right" if answer.right else "wrong"


def _in_words(answer: Answer) -> str:
    """Return an answer in words, even if the modality has none."""
    if answer.text:
        return answer.text
    if answer.regions:
        return counted(answer.regions)
    if answer.right is None:
        return "no answer"
    return "the right answer" if answer.right else "another answer"


def spoken(status: str) -> str:
    """Return what a screen reader says before a word of this status.

    >>> spoken("deleted")
    'not heard:'
    """
    return SPOKEN[status]


def counted(regions: Sequence[Region]) -> str:
    """Return how many regions there are of each label.

    >>> counted([Region(0, 0, 1, 1, "cat"), Region(0, 0, 1, 1, "dog"), Region(0, 0, 1, 1, "cat")])
    '2 cat, 1 dog'
    """
    labels = [region.label for region in regions]
    return ", ".join(f"{labels.count(label)} {label}" for label in dict.fromkeys(labels))


def _alt(exhibit: Exhibit) -> str:
    return exhibit.text or f"Test example {exhibit.id}"
