"""The table of finders: what looks for what, in which kinds of data."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from fedcollm.data.audit.duplicates import duplicate_texts
from fedcollm.data.audit.findings import KINDS, Finding, Fix, Subject
from fedcollm.data.audit.images import images
from fedcollm.data.audit.labels import label_errors
from fedcollm.data.audit.personal import personal
from fedcollm.data.audit.sounds import sounds
from fedcollm.data.audit.texts import empty, garbled, language, long, spelling

_TEXT, _IMAGES, _SOUNDS = ("text",), ("image_files", "object_files"), ("audio_files", "speech_files")
_ALL = (*_TEXT, *_IMAGES, *_SOUNDS)


@dataclass(frozen=True)
class Finder:
    """Something that is looked for.

    Attributes:
        find: yields the findings.
        kinds: kinds of data that it looks at.
        words: what it looks for, for messages.
    """

    find: Callable[[Subject], Iterator[Finding]]
    kinds: Collection[str]
    words: str


def _unreadable(subject: Subject) -> Iterator[Finding]:
    for i, record in enumerate(subject.records):
        if record.fault:
            yield Finding("unreadable", i, record.fault, fix=Fix("drop"))


#: Name of a finder, as `--only` and `--without` take it, to the finder.
FINDERS: Mapping[str, Finder] = {
    "unreadable": Finder(_unreadable, _ALL, "rows and files that can't be read"),
    "empty": Finder(empty, _ALL, "empty inputs and missing labels"),
    "spelling": Finder(spelling, _ALL, "one class in several spellings"),
    "labels": Finder(label_errors, (*_TEXT, "image_files", "audio_files"), "labels that are probably wrong"),
    "duplicates": Finder(duplicate_texts, _TEXT, "exact and near duplicates"),
    "garbled": Finder(garbled, _TEXT, "garbled text"),
    "long": Finder(long, _TEXT, "texts that are cut off in training"),
    "language": Finder(language, _TEXT, "texts in another language"),
    "personal": Finder(personal, (*_TEXT, "speech_files"), "personal data"),
    "images": Finder(images, _IMAGES, "broken, odd, dark, bright, blurry, plain and repeated images"),
    "sounds": Finder(sounds, _SOUNDS, "broken, silent, clipped, short and repeated recordings"),
}


def find(subject: Subject, names: Collection[str]) -> list[Finding]:
    """Return all findings, in the order of `KINDS`, of a kind the surest first.

    Args:
        subject: the data.
        names: the finders, keys of `FINDERS`; those of other kinds of data find nothing.

    Raises:
        UserError: a library is missing.
    """
    wanted = [finder for name, finder in FINDERS.items() if name in names and subject.kind in finder.kinds]
    found = [finding for finder in wanted for finding in finder.find(subject)]
    order = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(found, key=lambda one: (order[one.kind], -one.score, one.record))
