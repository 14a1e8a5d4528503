import pytest

from fedcollm.data.audit import duplicates
from fedcollm.data.audit.duplicates import duplicate_texts, near_texts
from fedcollm.data.audit.findings import Fix, Record, Subject
from fedcollm.data.audit.texts import empty, garbled, language, language_of, long, spelling


def subject(*texts, labels=None, **more):
    records = [
        Record(None, i, f"row {i}", text, None if labels is None else labels[i - 1], {"note": text})
        for i, text in enumerate(texts, start=1)
    ]
    return Subject("text", records, **{"answer": "kind", **more})


def found(finder, *texts, **more):
    return [(one.kind, one.record, one.fix) for one in finder(subject(*texts, **more))]


def test_inputs_without_letters_and_missing_labels():
    assert found(empty, "pain", " ...", "fever", labels=["a", "a", None]) == [
        ("empty", 1, Fix("drop")),
        ("unlabelled", 2, Fix("drop")),
    ]


def test_a_class_in_several_spellings_becomes_the_most_frequent_one():
    labels = ["Heart", "heart ", "Heart", "lung"]
    assert found(spelling, *"abcd", labels=labels) == [("spelling", 1, Fix("set", "kind", "Heart"))]
    assert found(spelling, *"abcd", labels=labels, free=True) == []


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("the patientâ€™s knee", Fix("set", "note", "the patient’s knee")),
        ("MÃ¼nchen", Fix("set", "note", "München")),
        ("lost \ufffd\ufffd signs", None),
        ("a bell \x07 rings", None),
        ("a null \0 stands here", None),
        ("$$$ ### @@@ !!! %%% ab", None),
    ],
)
def test_garbled(text, fix):
    assert found(garbled, text, "pain in the knee") == [("garbled", 0, fix)]


@pytest.mark.parametrize(
    "text", ["Größe: 1,80 m (5′11″)", "膝の痛み、発熱なし。", "боль в колене", "a\tb\r\nc", "120/80 mmHg"]
)
def test_not_garbled(text):
    assert found(garbled, text) == []


def test_text_of_random_letters_among_like_texts():
    known = [f"the patient has pain in the {part} since the fall" for part in ("knee", "foot", "hand", "back")]
    assert found(garbled, *known, "xqzwv kjhgf pplmo bnvcx zxqwj") == [("garbled", 4, None)]
    (one,) = garbled(subject(*known, "xqzwv kjhgf pplmo bnvcx zxqwj"))
    assert one.detail == "only 0 % of its sequences of three letters occur in any other text"
    assert found(garbled, "xqzwv kjhgf pplmo bnvcx zxqwj", "another text that is alone here") == []


def test_texts_that_are_cut_off():
    assert found(long, "one two three", "one", longest=2, count_tokens=lambda text: len(text.split())) == [
        ("long", 0, None)
    ]
    assert found(long, "one two three") == []


def test_language():
    english = [f"The patient has had severe pain in the {part} since yesterday" for part in ("knee", "arm", "back")]
    german = "Der Patient klagt seit gestern über starke Schmerzen im linken Knie"
    assert found(language, *english, german) == [("language", 3, None)]
    assert found(language, english[0], german) == []  # no language is that of most texts
    assert (language_of(german)[0], language_of("Knie")) == ("de", None)
    assert language_of("患者は昨日から膝の痛みを訴えている")[0] == "ja"


def test_near_texts_by_hand():
    fall = "Pain in the left knee after a fall from a horse, cannot bend the leg"
    texts = [fall, fall.upper(), f"{fall}!", "", "", f"{fall} 2", "short text", "short test"]
    pairs = [(i, j, round(similarity, 2)) for i, j, similarity in near_texts(texts)]
    # 68 signs have 65 different groups of four; one more sign adds one: 65 / 66
    assert pairs == [(1, 0, 1.0), (2, 0, 0.98)]


def test_duplicates_with_another_label_are_not_dropped():
    fall = "Pain in the left knee after a fall from a horse"
    labels = ["a", "a", "b", "A"]
    assert found(duplicate_texts, fall, fall, fall, f"{fall}.", labels=labels) == [
        ("duplicate", 1, Fix("drop")),
        ("conflict", 2, None),
        ("near_duplicate", 3, Fix("drop")),
    ]


def test_time_is_nearly_linear_whatever_the_texts_are(monkeypatch):
    calls, jaccard = [], duplicates._jaccard
    monkeypatch.setattr(duplicates, "_jaccard", lambda one, other: calls.append(1) or jaccard(one, other))
    assert list(near_texts([f"the patient has had severe pain since visit {i}" for i in range(500)])) == []
    assert not calls  # texts with other numbers are never alike
    shared = "the patient has severe pain in the left knee "  # 42 of 66 4-grams of two texts
    texts = [shared + 12 * chr(ord("a") + i % 26) + 12 * chr(ord("a") + i // 26) for i in range(400)]
    assert len(list(near_texts(texts))) < 40
    assert len(calls) < 400 * 2 * duplicates._CROWD  # of 79,800 pairs


def test_near_duplicates_are_found_before_and_after_a_group_is_indexed():
    words = [f"{a}{b} note on another illness of the {b}{a} organ" for a in "abcdefghk" for b in "lmnopqrst"]
    texts = [*words, *(f"{word}." for word in words)]
    assert [(i - 81, j) for i, j, _ in near_texts(texts)][-81:] == [(i, i) for i in range(81)]
