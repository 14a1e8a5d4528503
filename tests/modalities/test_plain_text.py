"""Texts that no file can hold are refused, wherever they stand in a value."""

import pytest

from fedcollm.errors import UserError
from fedcollm.modalities.plain_text import check_text, fault


def test_usual_text_has_no_fault():
    assert [fault(text) for text in ("", "naïve 🙂", "a\n\tb", "\u200b")] == [None] * 4


@pytest.mark.parametrize(
    ("text", "reason"), [("a\0b", "null character"), ("\ud800", "surrogate U+D800"), ("x\udfff", "surrogate U+DFFF")]
)
def test_faults_are_named_at_any_depth(text, reason):
    for value in (text, [1, [text]], {"a": {"b": [text]}}, {text: 1}):
        with pytest.raises(UserError) as error:
            check_text(value, "a.jsonl, line 3: column 'x'")
        assert reason in str(error.value)
        assert str(error.value).startswith("a.jsonl, line 3: column 'x' holds ")
        str(error.value).encode("utf-8")  # the message itself can be printed


def test_other_values_are_left_alone():
    check_text([None, 1, 2.5, True, b"\0", {"a": "b"}], "here")
