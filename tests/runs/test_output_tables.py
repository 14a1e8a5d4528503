"""What predictions look like in a file that a spreadsheet opens."""

import pytest

from fedcollm.runs.output_tables import without_formulas


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1+1", "-2+3", "@SUM(1)", "\t=1", "-5 mg"])
def test_prediction_that_would_be_computed_gets_a_quote(text):
    assert without_formulas([{"a": text, "new_prediction": text}], "new_") == (
        [{"a": text, "new_prediction": f"'{text}"}],
        1,
    )


@pytest.mark.parametrize("text", ["", "+", "-", "= ", "-5", "+1.5e3", "a=b", "heart"])
def test_sign_alone_number_and_word_stay(text):
    assert without_formulas([{"prediction": text}]) == ([{"prediction": text}], 0)
