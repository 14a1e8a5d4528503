"""Prompts from templates whose columns may be empty in some rows."""

import datetime
import json
from decimal import Decimal
from pathlib import Path

import pytest

from fedcollm.config import FormatConfig
from fedcollm.data.files import load_custom
from fedcollm.data.pool import Pool
from fedcollm.data.templates import Template
from fedcollm.errors import UserError

ALPACA = "{instruction}\n{input}\nResponse:"


def load(folder: Path, prompt: str, *rows: dict[str, object]) -> Pool:
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_custom(folder / "x.jsonl", FormatConfig(prompt=prompt, answer="output"))


def test_lines_whose_columns_are_all_empty_are_left_out_and_counted(tmp_path):
    rows = [
        {"instruction": "Name a color.", "output": "Red."},
        {"instruction": "Greet.", "input": " ", "output": "Hi."},
    ]
    pool = load(tmp_path, ALPACA, *rows, {"instruction": "Translate.", "input": "oui", "output": "yes"})
    assert [example.prompt for example in pool.train] == [
        "Name a color.\nResponse:",
        "Greet.\nResponse:",
        "Translate.\noui\nResponse:",
    ]
    assert pool.notes == [
        "x.jsonl: column 'input' is empty in 2 of 3 rows; lines of the prompt with nothing else are left out there"
    ]


@pytest.mark.parametrize(
    ("prompt", "row", "wanted"),
    [
        ("{a}{b}", {"a": "x", "b": None}, "x"),
        ("{a} and {b}.", {"a": "x", "b": ""}, "x and ."),
        ("Fixed\n{b}\n\n{a}", {"a": "x", "b": None}, "Fixed\n\nx"),
        ("Q: {a}\nIn: {b} {b:.2f}\nA:", {"a": "x"}, "Q: x\nA:"),
        ("{a}\n", {"a": "x"}, "x\n"),
        ("{{b}}\n{a}", {"a": "x"}, "{b}\nx"),
        ("{a}", {"a": "two\nlines"}, "two\nlines"),
        ("{a:d} {a:.1f} {a}", {"a": 7.0}, "7 7.0 7"),
        ("{a!r:>5}", {"a": "x"}, "  'x'"),
        ("{a:>5}|{a!s:>5}|{a!r}|{a:05}", {"a": 7.0}, "    7|    7|7|00007"),
        ("{a:>5}|{a:<5}|{a:d}", {"a": True}, " True|True |1"),
        ("{a:>5}|{a:.3}|{a:,}", {"a": 1234.5}, "1234.5|1.23e+03|1,234.5"),
        ("{a:>4}|{a:.1f}|{a:s}", {"a": Decimal("1E+2")}, " 100|100.0|100"),
        ("{a:>12}|{a:%Y}|{a!s}", {"a": datetime.date(2026, 3, 1)}, "  2026-03-01|2026|2026-03-01"),
        ("{a:>5}|{a:05d}|{a:s}", {"a": 42}, "   42|00042|42"),
        ("{o\u0308}", {"\u00f6": 1}, "1"),
    ],
)
def test_prompts(prompt, row, wanted):
    assert Template(prompt).fill(row, "here")[0] == wanted


@pytest.mark.parametrize(
    ("prompt", "row", "message"),
    [
        ("{a} {b}", {"a": "", "b": None}, "here: columns 'a' and 'b' .* are empty. Fill in at least one"),
        ("{a}", {"a": float("nan")}, "here: column 'a' .* is empty. Fill it in"),
        ("{a:.2f}", {"a": int("7" * 400)}, "can't format 777"),
        ("{a:d}", {"a": 7.5}, "can't format 7.5"),
    ],
)
def test_rows_without_a_prompt(prompt, row, message):
    with pytest.raises(UserError, match=message):
        Template(prompt).fill(row, "here")


def test_column_that_no_row_has_is_a_slip_of_the_pen(tmp_path):
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "a", "context": "c", "output": "b"}]
    said = (
        r"x\.jsonl: there is no column 'contxt' .* columns are instruction, output, context\. Did you mean 'context'\?"
    )
    with pytest.raises(UserError, match=said):
        load(tmp_path, "{instruction}\n{contxt}", *rows)
    many = {f"c{i}": 1 for i in range(5000)}
    with pytest.raises(UserError, match=r"The columns are c0, .*, c29 and 4970 more\."):
        load(tmp_path, "{zzz}", many)
