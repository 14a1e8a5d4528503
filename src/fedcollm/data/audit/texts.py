"""Find texts that are empty, garbled, too long or in another language than the others."""

import functools
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import Any

from fedcollm.data.audit.extra import audit_library
from fedcollm.data.audit.findings import Finding, Fix, Subject

#: Share of letters, digits and spaces below which a text of at least `_FEWEST_SIGNS` signs is a soup of symbols.
_FEWEST_LETTERS, _FEWEST_SIGNS = 0.5, 12

#: A text is unlike all others if fewer of its trigrams than this share stand in another one, while the trigrams of the
#: median text do to this share. Shorter texts are not judged.
_UNKNOWN, _KNOWN, _JUDGED = 0.35, 0.7, 20

#: How sure the language of a text must be, and the fewest letters for which it is asked. A sign of a script
#: whose signs are syllables or words counts as ten.
_SURE, _LETTERS, _DENSE = 0.9, 40, 10


def empty(subject: Subject) -> Iterator[Finding]:
    """Yield the records whose input has no letter and no digit, and those without a label."""
    for i, record in enumerate(subject.records):
        if record.source is None and not any(sign.isalnum() for sign in record.text):
            yield Finding("empty", i, "the input has no letter and no digit", fix=Fix("drop"))
        elif subject.answer and record.label is None:
            yield Finding("unlabelled", i, f"column {subject.answer} is empty", fix=Fix("drop"))


def spelling(subject: Subject) -> Iterator[Finding]:
    """Yield labels that differ from a more frequent one by case, white space or Unicode form only."""
    if subject.free or not subject.answer:
        return
    counts = Counter(record.label for record in subject.records if record.label)
    best: dict[str, str] = {}
    for label, _ in counts.most_common():
        best.setdefault(folded(label), label)
    for i, record in enumerate(subject.records):
        if record.label and (usual := best[folded(record.label)]) != record.label:
            detail = f"{record.label!r} beside {usual!r}, which is more frequent"
            yield Finding("spelling", i, detail, fix=Fix("set", subject.answer, usual))


def folded(text: str) -> str:
    """Return a label without what makes no difference to a reader: case, white space and Unicode form.

    >>> folded("Heart  Failure") == folded("heart failure")
    True
    """
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def garbled(subject: Subject) -> Iterator[Finding]:
    """Yield texts in a wrong encoding, with signs that stand for nothing, of symbols only, or unlike all others."""
    ftfy = audit_library("ftfy")
    for i, record in enumerate(subject.records):
        for column, text in (record.cells or {"": record.text}).items():
            if reason := _reason(ftfy, text):
                repaired = ftfy.fix_encoding(text)
                mends = bool(column) and repaired != text and not _reason(ftfy, repaired)
                yield Finding("garbled", i, reason, fix=Fix("set", column, repaired) if mends else None)
                break
    yield from _unlike(subject)


def _reason(ftfy: Any, text: str) -> str:
    """Return why a text is garbled; nothing if it seems not to be."""
    if lost := text.count("\ufffd"):
        return f"{lost} replacement characters (U+FFFD): its encoding was lost"
    controls = {sign for sign in text if unicodedata.category(sign) == "Cc" and sign not in "\t\n\r"}
    if controls and not ftfy.badness.is_bad(text):
        return f"control characters, such as U+{ord(min(controls)):04X}"
    if ftfy.badness.is_bad(text):
        return "text in one encoding that was read in another one"
    signs = [sign for sign in text if not sign.isspace()]
    spoken = sum(unicodedata.category(sign)[0] in "LMN" for sign in signs)
    if len(signs) >= _FEWEST_SIGNS and spoken < _FEWEST_LETTERS * len(signs):
        return f"{len(signs) - spoken} of {len(signs)} signs are symbols"
    return ""


def _unlike(subject: Subject) -> Iterator[Finding]:
    """Yield texts whose trigrams hardly stand in any other text, as those of texts of random letters do not."""
    texts = [" ".join(record.text.casefold().split()) for record in subject.records]
    grams = [{text[i : i + 3] for i in range(len(text) - 2)} for text in texts]
    counts = Counter(gram for some in grams for gram in some)
    known = [sum(counts[gram] > 1 for gram in some) / len(some) if some else 1.0 for some in grams]
    if not known or sorted(known)[len(known) // 2] < _KNOWN:
        return
    for i, share in enumerate(known):
        if share < _UNKNOWN and len(texts[i]) >= _JUDGED:
            detail = f"only {100 * share:.0f} % of its sequences of three letters occur in any other text"
            yield Finding("garbled", i, detail, 1 - share)


def long(subject: Subject) -> Iterator[Finding]:
    """Yield texts that are longer than a model reads."""
    if subject.longest is None:
        return
    unit, count = ("tokens", subject.count_tokens) if subject.count_tokens else ("characters", len)
    for i, record in enumerate(subject.records):
        if (length := count(record.text)) > subject.longest:
            yield Finding("long", i, f"{length:,} {unit} of at most {subject.longest:,}")


def language(subject: Subject) -> Iterator[Finding]:
    """Yield texts in another language than most, if they are long enough to tell."""
    found = {i: known for i, record in enumerate(subject.records) if (known := language_of(record.text))}
    names = Counter(name for name, _ in found.values())
    if not names:
        return
    usual, most = names.most_common(1)[0]
    if 2 * most <= sum(names.values()):
        return  # there is no language that most texts are in
    for i, (name, sure) in found.items():
        if name != usual and sure >= _SURE:
            yield Finding("language", i, f"seems to be in {name}; most texts are in {usual}", sure)


@functools.cache
def _identifier() -> Any:
    module: Any = audit_library("py3langid.langid", "py3langid")
    return module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)


def language_of(text: str) -> tuple[str, float] | None:
    """Return the language of a text (ISO 639) and how sure that is, from 0 to 1; None if it is too short to tell.

    Raises:
        UserError: py3langid is not installed.
    """
    letters = [sign for sign in text if sign.isalpha()]
    dense = sum(sign > "\u2e7f" for sign in letters)
    if len(letters) + (_DENSE - 1) * dense < _LETTERS:
        return None
    name, sure = _identifier().classify(text)
    return str(name), float(sure)
