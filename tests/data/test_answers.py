"""How answers name their choice: in one way for all rows, or not at all; and choices in the forms of public data."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedcollm.config import FormatConfig
from fedcollm.data.answers import WAYS
from fedcollm.data.choices import Choices, listed, of_cell
from fedcollm.data.files import load_custom
from fedcollm.data.pool import Pool
from fedcollm.errors import UserError

MMLU = ["red", "blue", "green", "black"]
ARC = {"text": ["red", "blue"], "label": ["A", "B"]}


def load(folder: Path, choices: Any, *answers: Any, answer_is: str = "auto") -> Pool:
    """Load rows with answers; a tuple is the row's own choices and its answer."""
    is_own = not isinstance(choices, list)
    rows = [{"q": f"q{i}", "c": a[0] if is_own else "", "a": a[1] if is_own else a} for i, a in enumerate(answers)]
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    form = FormatConfig.model_validate({"prompt": "{q}", "answer": "a", "choices": choices, "answer_is": answer_is})
    return load_custom(folder / "x.jsonl", form, several_classes=False)


def chosen(pool: Pool) -> list[str]:
    return [example.choices[example.answer] for example in pool.train]


@pytest.mark.parametrize(
    ("choices", "answers", "wanted", "way"),
    [
        (["no", "yes"], ["yes", "no"], ["yes", "no"], None),
        (["no", "yes"], [1, 0], ["yes", "no"], "position"),
        (["no", "yes"], ["1", "0"], ["yes", "no"], "position"),
        (["no", "yes"], [1.0, 0.0], ["yes", "no"], "position"),
        (["no", "yes"], [1, 2], ["no", "yes"], "position_from_1"),
        (["no", "yes"], ["B", "A"], ["yes", "no"], "letter"),
        (["0", "1"], [1, 0], ["1", "0"], None),  # the text and the position are the same choice
        (["1", "2"], [1, 2], ["1", "2"], None),
        (["3.0", "4.0"], [4.0, 3.0], ["4.0", "3.0"], None),
        (["3", "4"], [4.0, 3], ["4", "3"], None),
        (None, [(MMLU, 3), (MMLU, 0)], ["black", "red"], "position"),
        (None, [(MMLU, 4), (MMLU, 1)], ["black", "red"], "position_from_1"),
        (None, [(MMLU, "D"), (MMLU, "A")], ["black", "red"], "letter"),
        (None, [(["2", "0"], 2), (["0", "3"], 3)], ["2", "3"], None),
        (None, [(ARC, "A"), (ARC, "B")], ["red", "blue"], "letter"),
        (None, [({"text": MMLU, "label": list("1234")}, "2"), (ARC, "A")], ["blue", "red"], "letter"),
        (None, [([{"label": "x", "text": "1"}, {"label": "y", "text": "2"}], "y")], ["2"], "letter"),
        (None, [(json.dumps(ARC), "B")], ["blue"], "letter"),
    ],
)
def test_one_way_fits_all_rows(tmp_path, choices, answers, wanted, way):
    pool = load(tmp_path, choices or "c", *answers)
    assert chosen(pool) == wanted
    notes = [] if way is None else [f"the answers in column 'a' are read as {WAYS[way].words}"]
    assert pool.notes == notes


AMBIGUOUS = [
    ([(["2", "0", "1"], 0), (["0", "3", "1"], 0)], "text or position", "'0'", "'2'"),
    ([(MMLU, 1), (MMLU, 2)], "position or position_from_1", "'blue'", "'red'"),
    ([(["B", "A"], "A")], "text or letter", "'A'", "'B'"),
]


@pytest.mark.parametrize(("answers", "ways", "one", "other"), AMBIGUOUS)
def test_several_ways_are_refused_and_the_configuration_decides(tmp_path, answers, ways, one, other):
    with pytest.raises(UserError, match=rf"line 1: .*two ways.*{one}.*{other}.*Set task.format.answer_is to {ways}"):
        load(tmp_path, "c", *answers)
    first, second = ways.split(" or ")
    assert repr(chosen(load(tmp_path, "c", *answers, answer_is=first))[0]) == one
    assert repr(chosen(load(tmp_path, "c", *answers, answer_is=second))[0]) == other


def test_listed_texts_and_labels_of_a_row_go_before_positions_and_a_note_says_so(tmp_path):
    stars = load(tmp_path, ["1", "2", "3"], 1, 2)
    assert chosen(stars) == ["1", "2"]
    assert stars.notes == [
        "the answers in column 'a' are read as texts of the choices, though they could be positions of the choices "
        "from 0 as well (task.format.answer_is)"
    ]
    numbered = {"text": ["4", "1", "9"], "label": ["1", "2", "3"]}
    labelled = load(tmp_path, "c", (numbered, "1"), (numbered, "1"))
    assert chosen(labelled) == ["4", "4"]
    assert "read as letters of the choices, though they could be texts" in labelled.notes[0]


def test_texts_and_letters_may_be_mixed_if_no_row_can_be_read_in_two_ways(tmp_path):
    pool = load(tmp_path, "c", (MMLU, "blue"), (MMLU, "A"))
    assert chosen(pool) == ["blue", "red"]
    assert pool.notes == ["some answers in column 'a' are texts of the choices and some are letters"]
    with pytest.raises(UserError, match=r"line 2: answer 'D' .* is not one of .* other answers are texts"):
        load(tmp_path, "c", (MMLU, "blue"), (MMLU, "D"), (["B", "A"], "A"))


@pytest.mark.parametrize(
    ("answers", "answer_is", "message"),
    [
        (
            [0, 1, 7],
            "auto",
            "line 3: answer 7 .* is not one of .* The other answers are positions of the choices from 0",
        ),
        ([0, -1], "auto", "line 2: answer -1 .* is not one of"),
        (["no", "maybe"], "auto", "line 2: answer 'maybe' .* other answers are texts"),
        (["no", "yes"], "position", "line 1: answer 'no' .* is not one of"),
        ([1, "9" * 400], "auto", "line 2: answer '999.* is not one of"),
        ([True, False], "auto", "line 1: answer True"),
        ([["no"]], "auto", "line 1: column 'a' .* holds .'no'.. It needs text"),
    ],
)
def test_answer_that_names_no_choice(tmp_path, answers, answer_is, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, ["no", "yes"], *answers, answer_is=answer_is)


def test_the_way_is_one_for_all_files(tmp_path):
    for name, answers in (("train", (0, 3)), ("test", (1, 2))):  # the test file alone could be read from 1 too
        rows = [{"q": f"{name} {a}", "c": MMLU, "a": a} for a in answers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pool = load_custom(tmp_path, FormatConfig(prompt="{q}", answer="a", choices="c"))
    assert [example.answer for example in (*pool.train, *(pool.test or ()))] == [0, 3, 1, 2]


def test_two_spellings_of_a_word_are_one_label(tmp_path):
    pool = load(tmp_path, ["fie\u0300vre", "toux"], "fi\u00e8vre", "fie\u0300vre", " toux ")
    assert chosen(pool) == ["fi\u00e8vre", "fi\u00e8vre", "toux"]
    assert {example.label for example in pool.train} == {"fi\u00e8vre", "toux"}
    with pytest.raises(UserError, match="lists a choice twice"):
        listed(["fi\u00e8vre", "fie\u0300vre"], "task.format.choices")
    assert load(tmp_path, ["Flu", "flu "], "Flu", "flu").notes == [
        "the labels 'Flu' and 'flu' differ only by case or white space, and count as different labels"
    ]


@pytest.mark.parametrize(
    ("value", "texts", "letters"),
    [
        (["a", 1, 2.0], ("a", "1", "2"), ("A", "B", "C")),
        ("a| b", ("a", "b"), ("A", "B")),
        ('["a", "b"]', ("a", "b"), ("A", "B")),
        ("['yes|no', 'maybe']", ("yes|no", "maybe"), ("A", "B")),
        ("('a|b', \"it's\")", ("a|b", "it's"), ("A", "B")),
        ("{'text': ['a|b', 'c'], 'label': ['x', 'y']}", ("a|b", "c"), ("x", "y")),
        ("[a]|[b]", ("[a]", "[b]"), ("A", "B")),
        (ARC, ("red", "blue"), ("A", "B")),
        ({"text": ["x", "y"]}, ("x", "y"), ("A", "B")),
        ([{"label": 1, "text": "x"}, {"label": 2, "text": "y"}], ("x", "y"), ("1", "2")),
    ],
)
def test_forms_of_choices(value, texts, letters):
    assert of_cell(value, "here")[:2] == (texts, letters)
    assert isinstance(of_cell(value, "here"), Choices)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"label": ["A"]}, "Write the choices as a list"),
        ({"text": ["x", "y"], "label": ["A"]}, "Give each of the 2 choices its own"),
        ({"text": ["x", "y"], "label": ["A", "A"]}, "Give each of the 2 choices its own"),
        ([{"label": "A", "text": None}, {"label": "B", "text": "y"}], "text that is not empty"),
        ([["x"], "y"], "text that is not empty"),
        (["x", float("nan")], "text that is not empty"),
        ("['yes|no', 'it's']", "Write the choices as a list"),
        ("['yes|no' 'maybe']", "Give at least 2 choices"),
        ("array(['yes|no', 'maybe'], dtype=object)", "Write the choices as a list"),
        ("[" * 100_000, "Give at least 2 choices"),
    ],
)
def test_choices_in_no_form(value, message):
    with pytest.raises(UserError, match=message):
        of_cell(value, "here")


def test_answer_is_needs_choices():
    text, images = {"prompt": "{q}", "answer": "a"}, {"image": "i", "answer": "a"}
    for keys in (text, images, {"messages": "m"}, {"audio": "a", "transcript": "t"}):
        with pytest.raises(ValueError, match="answer_is position is for one of several choices"):
            FormatConfig.model_validate({**keys, "answer_is": "position"})
