"""Transcripts: normalization, and sums over the corpus, worked out by hand."""

import pytest
from tests.modalities.audio.clips import tone

from fedcollm.errors import UserError
from fedcollm.modalities.audio.transcripts import (
    SpeechExample,
    compared,
    normalized,
    same_columns,
    transcript,
    transcript_score,
)


def said(name: str, text: str | None) -> SpeechExample:
    return SpeechExample(name, tone(440, 0.1), text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  World!", "hello world"),
        ("don't", "dont"),
        ("twenty-one – or so", "twenty one or so"),
        ("5 € + \t$3", "5 3"),
        ("ÉCOLE", "école"),
        ("ﬁne", "fine"),
        ("?!", ""),
    ],
)
def test_normalized(text, expected):
    assert normalized(text) == expected


def test_score_sums_over_the_corpus():
    examples = [said("x", "The cat sat."), said("y", "go")]
    score = transcript_score(examples, ["the hat sat down", "GO!"])
    # x: cat -> hat is one substitution and down one insertion in 3 words; c -> h and five letters more in 11 characters
    assert score.sums == {"words": 3.0, "wer": 2.0, "cer": 6.0}
    assert score.counts == {"words": 4, "wer": 4, "cer": 13}
    assert score.outcomes == {"x": pytest.approx(2 / 3), "y": 1.0}
    assert (score.value, score.mean("wer"), score.count) == (0.75, 0.5, 2)
    parts = [transcript_score([one], [text]) for one, text in zip(examples, ["the hat sat down", "GO!"], strict=True)]
    assert parts[0] + parts[1] == score


def test_error_rate_can_exceed_one_and_word_accuracy_can_not():
    score = transcript_score([said("x", "go")], ["no no go no"])
    assert (score.value, score.mean("wer")) == (1.0, 3.0)


def test_nothing_heard_is_all_deletions():
    score = transcript_score([said("x", "go on")], [""])
    assert score.sums == {"words": 0.0, "wer": 2.0, "cer": 5.0}


def test_transcript_without_a_word_is_refused_by_name():
    for text in ("", "...", None):
        with pytest.raises(UserError, match=r"clip-7: .*no word"):
            transcript(said("clip-7", text))


def test_vocabularies_must_agree():
    same_columns("task", {"a": 0, "b": 1}, {"b": 1, "a": 0})
    with pytest.raises(UserError, match=r"'b' is column 1 of the SLM and column missing .* 2 tokens"):
        same_columns("task", {"a": 0, "b": 1}, {"a": 0, "c": 1})


def test_example_without_its_transcript_is_the_same_recording():
    one = said("x", "go")
    assert (one.without_label().label, one.without_label().content) == (None, one.content)


def test_words_are_marked_by_the_alignment():
    answer = compared(said("x", "Go, the cat sat."), "the hat sat down")
    assert (answer.text, answer.right) == ("the hat sat down", False)
    assert answer.words == (
        ("go", "deleted"),
        ("the", "same"),
        ("cat", "replaced"),
        ("hat", "replacement"),
        ("sat", "same"),
        ("down", "inserted"),
    )


def test_words_of_what_was_heard_rightly_or_not_at_all():
    right = compared(said("x", "Go on!"), "go on")
    assert (right.right, right.words) == (True, (("go", "same"), ("on", "same")))
    assert compared(said("x", "go on"), "").words == (("go", "deleted"), ("on", "deleted"))


@pytest.mark.parametrize("text", ["\u200b", "\u0301", "\0", "\u200b \u0301", "\ufeff", "\u2060…", "\u00ad"])
def test_words_that_cannot_be_seen_are_none(text):
    assert normalized(text) == ""
    assert normalized(f"a {text} b") == "a b"
    with pytest.raises(UserError, match="has no word"):
        transcript(said("x", text))


def test_marks_within_a_word_stay():
    assert normalized("हिन्दी می\u200cخواهم 21") == "हिन्दी می\u200cخواهم 21"
