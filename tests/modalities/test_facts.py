"""Facts from a server: whatever it sends, a client gets valid ones or one clear error."""

import pytest

from fedcollm.errors import UserError
from fedcollm.modalities.facts import class_names, clip_seconds, token_names, whole_number

ODD = (None, 5, True, "ab", {"a": 1}, [], [1, 2], [None, "a"], ["a", ""], ["a", " b"], ["a", "b\n"], [["a"], ["b"]],
       ["a", "a"], ["a", "\ud800"], ["a", "\0"], ["a", "b" * 201], [str(i) for i in range(10_001)])  # fmt: skip


def test_valid_names_come_back():
    assert class_names("t", {"classes": ["a b", "Ä"]}) == ["a b", "Ä"]
    assert class_names("t", {"classes": ["one"]}, fewest=1) == ["one"]
    assert len(class_names("t", {"classes": ["x" * 200, *map(str, range(9_999))]})) == 10_000


@pytest.mark.parametrize("classes", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("fewest", [1, 2])
def test_odd_names_are_refused(classes, fewest):
    with pytest.raises(UserError, match=r"^task t: the server's facts have classes .*Get a fresh copy") as error:
        class_names("t", {"classes": classes}, fewest)
    assert len(str(error.value)) < 400
    str(error.value).encode("utf-8")


def test_one_class_is_too_few_for_a_classifier_and_a_missing_fact_is_named():
    with pytest.raises(UserError, match="there are 1 of them, which is not from 2 to 10000"):
        class_names("t", {"classes": ["a"]})
    for check in (class_names, clip_seconds):
        with pytest.raises(UserError, match="the server's facts lack"):
            check("t", {})


@pytest.mark.parametrize("value", [99, 3_600_001, 10**400, -(10**400), 1_000.0, float("nan"), "960", True, None, [1]])
def test_durations_have_bounds(value):
    with pytest.raises(UserError, match=r"have milliseconds .*not a whole number from 100 to 3600000"):
        clip_seconds("t", {"milliseconds": value})
    assert [clip_seconds("t", {"milliseconds": n}) for n in (100, 3_600_000)] == [0.1, 3_600.0]


@pytest.mark.parametrize("value", [None, 5, "ab", [], ["c"], ["a", 1], ["a"] * 3, [["a"]], {"a": 0}])
def test_tokens_must_be_those_of_the_model(value):
    with pytest.raises(UserError, match=r"have prompt .*not a list of 1 to 2 tokens"):
        token_names("t", {"prompt": value}, "prompt", {"a": 0, "b": 1}, most=2)
    assert token_names("t", {"prompt": ["b", "a"]}, "prompt", {"a": 0, "b": 1}, most=2) == ["b", "a"]


@pytest.mark.parametrize("value", [0, 11, True, 5.0, "5"])
def test_numbers_have_bounds(value):
    with pytest.raises(UserError, match=r"have n .*from 1 to 10"):
        whole_number("t", {"n": value}, "n", 1, 10)
