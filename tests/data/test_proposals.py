"""What is guessed of the columns of a table."""

import json
from typing import Any

import pytest

from fedcollm.data.proposals import Wishes, propose_format
from fedcollm.data.table_columns import columns_of
from fedcollm.errors import UserError


def table(count: int = 24, **columns: Any) -> list[dict[str, Any]]:
    """Rows whose cells are what each function gives for the number of the row."""
    return [{name: make(i) for name, make in columns.items()} for i in range(count)]


def proposed(rows: list[dict[str, Any]], **wishes: str) -> dict[str, Any]:
    return propose_format(columns_of(rows), Wishes(**wishes))[0]


def said(rows: list[dict[str, Any]]) -> list[str]:
    return propose_format(columns_of(rows))[1]


NOTE = lambda i: f"note {i} of a patient"  # noqa: E731
WARD = lambda i: ("cardiology", "surgery")[i % 2]  # noqa: E731
PLACE = lambda i: ("north", "south", "east")[i % 3]  # noqa: E731


def test_text_classes_and_groups():
    rows = table(note=NOTE, department=WARD, hospital=PLACE)
    assert proposed(rows) == {
        "prompt": "{note}\ndepartment:",
        "answer": "department",
        "choices": ["cardiology", "surgery"],
        "group": "hospital",
    }
    assert said(rows) == ["department holds 2 classes", "hospital says which client a row belongs to"]


def test_groups_that_some_rows_lack_are_not_used():
    rows = table(note=NOTE, department=WARD, hospital=lambda i: PLACE(i) if i else "")
    assert "group" not in proposed(rows)
    assert said(rows)[1] == "no column has the name of a client in every row"
    assert proposed(rows, group="hospital")["group"] == "hospital"


def test_columns_with_names_of_another_language():
    rows = table(所見=lambda i: f"{i} 日前から咳", 診療科=lambda i: ("内科", "外科")[i % 2], 病院=PLACE)
    assert proposed(rows) == {
        "prompt": "{所見}\n診療科:",
        "answer": "診療科",
        "choices": ["内科", "外科"],
        "joiner": "",
        "group": "病院",
    }


def test_last_column_with_classes_is_the_answer_where_no_name_tells():
    rows = table(a=NOTE, b=PLACE, c=WARD)
    assert proposed(rows) == {"prompt": "a: {a}\nb: {b}\nc:", "answer": "c", "choices": ["cardiology", "surgery"]}


def test_numbers_of_rows_and_constants_are_no_input():
    rows = table(id=lambda i: i, year=lambda i: 2026, note=NOTE, label=WARD)
    assert proposed(rows)["prompt"] == "{note}\nlabel:"
    assert said(rows)[0] == "not used: id, year"


def test_free_text_has_no_choices():
    rows = table(instruction=NOTE, output=lambda i: f"answer {i}")
    assert proposed(rows) == {"prompt": "{instruction}\noutput:", "answer": "output"}
    assert said(rows)[0] == "output holds free text, which the models learn to write"


def test_conversations():
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = table(messages=lambda i: talk, bank=PLACE)
    wanted = {"messages": "messages", "group": "bank"}
    assert proposed(rows) == wanted
    for written in (json.dumps(talk), {"messages": talk}, json.dumps({"messages": talk}).encode()):
        assert proposed(table(messages=lambda i, cell=written: cell, bank=PLACE)) == wanted
    assert proposed(table(text=lambda i: f"[{i}]", label=WARD))["prompt"] == "{text}\nlabel:"


def test_choices_of_each_row():
    rows = table(question=NOTE, options=lambda i: ["red", "blue"], answer=lambda i: "AB"[i % 2])
    wanted = {"prompt": "{question}\nanswer:", "answer": "answer", "choices": "options"}
    assert proposed(rows) == wanted
    assert said(rows)[0] == "options holds the choices of each row, answer the right one"  # and not that it is unused
    for written in ('["red", "blue"]', "red|blue"):
        assert proposed([{**row, "options": written} for row in rows]) == wanted


def test_cells_are_read_as_in_a_run():
    cells = [0.0, 1.0, float("nan"), b"caf\xc3\xa9", "cafe\u0301", " café ", None, True]
    (column,) = columns_of([{"label": cell} for cell in cells])
    assert (column.filled, column.values) == (6, {"0": 1, "1": 1, "café": 3, "True": 1})
    (image,) = columns_of([{"image": b"\x89PNG"}])
    assert (image.values, image.nested) == ({}, b"\x89PNG")


@pytest.mark.parametrize(
    ("column", "cell", "answer", "found"),
    [
        ("photo", lambda i: f"a/{i}.JPG", WARD, {"image": "photo", "answer": "label"}),
        ("clip", lambda i: f"{i}.wav", WARD, {"audio": "clip", "answer": "label"}),
        ("clip", lambda i: f"{i}.flac", NOTE, {"audio": "clip", "transcript": "label"}),
    ],
)
def test_files(column, cell, answer, found):
    assert proposed(table(**{column: cell, "label": answer})) == found


def test_what_a_person_names_goes_before_what_is_guessed():
    rows = table(note=NOTE, label=WARD, place=PLACE)
    assert proposed(rows, answer="place", group="label", prompt="{note} where?") == {
        "prompt": "{note} where?",
        "answer": "place",
        "choices": ["east", "north", "south"],
        "group": "label",
    }


@pytest.mark.parametrize(
    ("rows", "wishes", "reason"),
    [
        (table(note=NOTE, label=WARD), {"answer": "labels"}, "no column 'labels'. The columns are note, label"),
        (table(note=NOTE, other=NOTE), {}, "--answer"),
        (table(label=WARD), {}, "--prompt"),
        (table(note=NOTE, ward=WARD, label=lambda i: "x"), {}, "column 'label' has one value, 'x', so that"),
        (
            table(note=NOTE, place=lambda i: 1.0),
            {"answer": "place"},
            "'place' has one value, '1'.* --answer",
        ),
        (table(note=NOTE, place=lambda i: float("nan")), {"answer": "place"}, "'place' is empty"),
        (table(note=NOTE, place=lambda i: [i]), {"answer": "place"}, r"'place' holds \[0\], and an answer is text"),
        (table(note=lambda i: "same", label=WARD), {}, "--prompt"),
    ],
)
def test_what_cannot_be_guessed_is_refused(rows, wishes, reason):
    with pytest.raises(UserError, match=reason):
        proposed(rows, **wishes)


def test_names_that_no_template_can_hold_are_left_out():
    rows = table(**{"note": NOTE, "a:b": NOTE, "{c}": NOTE, "label {x}": WARD})
    assert proposed(rows)["prompt"] == "{note}\nlabel {{x}}:"
