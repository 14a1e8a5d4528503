import pytest

from fedcollm.modalities.text.answers import agreement, answer_tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The  Eiffel\tTower!", ["eiffel", "tower"]),
        ("an apple, a day", ["apple", "day"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("ｶﾞｽ　１２", ["ガ", "ス", "12"]),  # half-width and full-width forms
        ("心不全（急性）", ["心", "不", "全", "急", "性"]),
        ("กขค", ["ก", "ข", "ค"]),
        ("심부전 환자", ["심부전", "환자"]),  # Korean has spaces
        ("cafe\u0301", ["café"]),
    ],
)
def test_tokens_without_case_punctuation_and_articles(text, tokens):
    assert answer_tokens(text) == tokens


@pytest.mark.parametrize(
    ("said", "truth", "exact", "f1"),
    [
        ("paris", "Paris.", 1, 1),
        ("in Paris", "Paris", 0, 2 / 3),
        ("Paris Paris", "Paris", 0, 2 / 3),  # a word counts as often as it is in both
        ("", "Paris", 0, 0),
        ("東京 都", "東京都", 1, 1),  # in Japanese, spaces do not count
        ("東京", "東京都", 0, 0.8),
        ("a", "A", 1, 1),  # a letter is no article where nothing else is left
        ("the", "A", 0, 0),
        ("-", "+", 0, 0),
        ("A.", "A", 1, 1),
        ("+.", "+", 0, 0),
    ],
)
def test_exact_match_and_f1_by_hand(said, truth, exact, f1):
    assert agreement(said, truth) == (exact, pytest.approx(f1))
