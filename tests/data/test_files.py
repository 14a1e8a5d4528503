import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from fedcollm.config import FormatConfig
from fedcollm.data.files import load_custom
from fedcollm.errors import UserError
from fedcollm.modalities.text.examples import TextExample

ROWS = [
    {"text": "fever", "age": 7, "ward": "north", "answer": "flu"},
    {"text": "cough, dry", "age": 8, "ward": "south", "answer": "cold"},
]
LABELS = FormatConfig(prompt="{text} ({age}):", answer="answer", choices=["flu", "cold"], group="ward")
EXPECTED = [
    TextExample("1", "fever (7):", ("flu", "cold"), 0, ("flu", "cold"), "north"),
    TextExample("2", "cough, dry (8):", ("flu", "cold"), 1, ("flu", "cold"), "south"),
]
FREE = FormatConfig(prompt="{text}", answer="answer")
COLUMN = FormatConfig(prompt="{text}", answer="answer", choices="options")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [list(rows[0]), *(row.values() for row in rows)]
        cells = [['"' + str(value).replace('"', '""') + '"' for value in line] for line in lines]
        path.write_text("".join(",".join(line) + "\n" for line in cells), encoding="utf-8")
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def message_of(path: Path, format: FormatConfig = FREE) -> str:
    with pytest.raises(UserError) as error:
        load_custom(path, format)
    return str(error.value)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.csv", "x.parquet"])
def test_one_file_of_each_kind(tmp_path: Path, name: str) -> None:
    pool = load_custom(write(tmp_path / name, ROWS), LABELS)
    assert list(pool.train) == EXPECTED
    assert pool.test is None


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_directory(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"train{suffix}", ROWS)
    assert load_custom(tmp_path, LABELS).test is None
    write(tmp_path / f"dev{suffix}", ROWS[:1])
    assert load_custom(tmp_path, LABELS).test == EXPECTED[:1]
    write(tmp_path / f"test{suffix}", ROWS)
    assert load_custom(tmp_path, LABELS).test == EXPECTED


def test_free_completion(tmp_path: Path) -> None:
    pool = load_custom(write(tmp_path / "x.jsonl", ROWS), FREE)
    assert pool.train[0] == TextExample("1", "fever", ("flu",), 0, ("flu",))


@pytest.mark.parametrize(
    ("prompt", "choices", "own"),
    [
        ("{text}", ["A", "B"], False),
        ("{text}\nA. {age}\nB. {ward}\nAnswer:", ["A", "B"], True),
        ("{text}\nA. {age}\nB. {ward}\nAnswer:", ["B", "A"], False),
        ("{text}", "options", True),
        ("{text}", None, False),
    ],
)
def test_letters_are_shared_labels_unless_the_template_lists_what_they_stand_for(tmp_path, prompt, choices, own):
    row = {"text": "a note:\nA. or\nB. or", "age": 7, "ward": "north", "options": "A|B"}
    path = write(tmp_path / "x.jsonl", [{**row, "answer": "A"}, {**row, "answer": "B"}])
    columns = FormatConfig(prompt=prompt, answer="answer", choices=choices)
    assert [e.own_choices for e in load_custom(path, columns, several_classes=False).train] == [own, own]


def test_free_completion_may_have_one_answer_only(tmp_path: Path) -> None:
    assert len(load_custom(write(tmp_path / "x.jsonl", ROWS[:1]), FREE).train) == 1


def test_ids_of_their_own(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "id": 10}, {**ROWS[1], "id": "x"}]
    assert [e.id for e in load_custom(write(tmp_path / "x.jsonl", rows), FREE).train] == ["10", "x"]


@pytest.mark.parametrize(
    ("options", "answer", "index"),
    [
        (["flu", "cold"], "cold", 1),
        (["flu", "cold"], "B", 1),
        ('["flu", "cold"]', "cold", 1),
        ("flu|cold", " cold ", 1),
        ("flu | cold", "A", 0),
        (["B", "A"], "A", 0),  # which all answers can be read as letters, but not as texts
        ([1, 2], 2, 1),
        ("1|2", 2, 1),
    ],
)
def test_choices_of_a_column(tmp_path: Path, options: Any, answer: Any, index: int) -> None:
    other = {"text": "other", "options": "x|y", "answer": "AB"[1 - index]}
    path = write(tmp_path / "x.jsonl", [{"text": "t", "options": options, "answer": answer}, other])
    example = load_custom(path, COLUMN).train[0]
    assert example.answer == index
    assert example.labels == ("A", "B")
    assert len(example.choices) == 2


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_choices_of_a_column_in_other_formats(tmp_path: Path, suffix: str) -> None:
    options: Any = ["flu", "cold"] if suffix == ".parquet" else '["flu", "cold"]'
    rows = [{"text": answer, "options": options, "answer": answer} for answer in ("flu", "cold")]
    pool = load_custom(write(tmp_path / f"x{suffix}", rows), COLUMN)
    assert [(e.choices, e.answer) for e in pool.train] == [(("flu", "cold"), 0), (("flu", "cold"), 1)]


def test_columns_of_any_name_and_format_specs(tmp_path: Path) -> None:
    rows = [{"the text.": "a{b}", "x": 1.5, "answer": "y"}]
    format = FormatConfig(prompt="{{{the text.}}} {x:.2f} {x!r}", answer="answer")
    assert load_custom(write(tmp_path / "x.jsonl", rows), format).train[0].prompt == "{a{b}} 1.50 1.5"


def test_csv_with_line_ends_in_a_text_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('\ufefftext,answer\r\n"a\nb",y\r\n\r\nc,z\r\n', encoding="utf-8", newline="")
    assert [(e.id, e.prompt, e.label) for e in load_custom(path, FREE).train] == [("1", "a\nb", "y"), ("2", "c", "z")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('text,answer\n"a\nb",y\nc\n', "line 4: 1 field, but the header has 2"),
        ("text,answer\na,b,c\n", "line 2: 3 fields, but the header has 2"),
        ("text,text\na,b\n", "line 1: the header has column 'text' twice"),
        ('text,answer\na,b\n"a,b\n', "line 3: can't be read as CSV"),
        ("text,answer\n", "has no rows"),
        ("", "has no rows"),
        ("text,answer\na, \n", "line 2: column 'answer' (task.format.answer) is empty"),
    ],
)
def test_a_broken_csv(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.csv").write_text(content, encoding="utf-8")
    assert message in message_of(tmp_path / "x.csv")


def test_a_csv_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("text,answer\nä,b\n".encode("latin-1"))
    said = message_of(tmp_path / "x.csv")
    assert "line 2: byte 0xE4 (number 13 of the file)" in said
    assert "task.format.encoding" in said
    assert "cp1252" in said
    latin = FREE.model_copy(update={"encoding": "latin-1"})
    assert load_custom(tmp_path / "x.csv", latin).train[0].prompt == "ä"


def test_a_broken_parquet(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing more")
    assert "x.parquet: can't be read as Parquet" in message_of(tmp_path / "x.parquet")


def test_an_empty_cell_of_a_parquet(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [{"text": "a", "answer": 1.0}, {"text": "b", "answer": float("nan")}])
    assert "row 2: column 'answer' (task.format.answer) is empty" in message_of(path)


BAD_ROWS = [
    ({"text": "a"}, LABELS, "line 3: column 'answer' (task.format.answer) is empty"),
    (
        {"note": "a", "answer": "flu"},
        FREE,
        "line 3: column 'text' (task.format.prompt) is empty",
    ),
    ({**ROWS[0], "answer": "pox"}, LABELS, "line 3: answer 'pox' (column 'answer') is not one of the choices"),
    ({**ROWS[0], "answer": "A"}, LABELS, "line 3: answer 'A' (column 'answer') is not one of the choices"),
    ({**ROWS[0], "answer": None}, LABELS, "line 3: column 'answer' (task.format.answer) is empty"),
    ({**ROWS[0], "answer": ["flu"]}, LABELS, "line 3: column 'answer' (task.format.answer) holds ['flu']"),
    ({**ROWS[0], "ward": " "}, LABELS, "line 3: column 'ward' (task.format.group) is empty"),
    ({**ROWS[0], "text": ["fever"]}, LABELS, "line 3: column 'text' (task.format.prompt) holds ['fever']"),
    (
        {**ROWS[0], "age": "seven"},
        LABELS.model_copy(update={"prompt": "{text} {age:d}"}),
        "line 3: task.format.prompt can't format 'seven' in column 'age'",
    ),
]


@pytest.mark.parametrize(("row", "format", "message"), BAD_ROWS, ids=[message for *_, message in BAD_ROWS])
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, Any], format: FormatConfig, message: str) -> None:
    path = write(tmp_path / "x.jsonl", [*ROWS, row])
    assert f"{path}, {message}" in message_of(path, format)


@pytest.mark.parametrize(
    ("options", "answer", "message"),
    [
        ([], "A", "line 1: column 'options' holds []"),
        ("flu", "flu", "line 1: column 'options' holds ['flu']"),
        (["a", " "], "A", "line 1: column 'options' holds ['a', ' ']. Each choice must be text"),
        ([["a"], "b"], "A", "line 1: column 'options' holds [['a'], 'b']. Each choice must be text"),
        (7, "A", "line 1: column 'options' holds 7"),
        (["a", "b"], "C", "line 1: answer 'C' (column 'answer') is not one of the choices ['a', 'b']"),
        (["a", "b", "a"], "a", "line 1: answer 'a' (column 'answer') appears more than once among the choices"),
        (list("abcdefghijklmnopqrstuvwxyz0"), "a", "holds 27 choices. Give at most 26"),
    ],
)
def test_bad_choices_of_a_column(tmp_path: Path, options: Any, answer: str, message: str) -> None:
    path = write(tmp_path / "x.jsonl", [{"text": "t", "options": options, "answer": answer}])
    assert message in message_of(path, COLUMN)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"choices": ["flu"]}, "task.format.choices holds ['flu']"),
        ({"choices": ["flu", ""]}, "task.format.choices holds ['flu', '']. Each choice must be text"),
        ({"choices": ["flu", "flu "]}, "task.format.choices lists a choice twice"),
        ({"prompt": "{text"}, "task.format.prompt: '{text' is not a valid template"),
        ({"prompt": "{}"}, "task.format.prompt: '{}' is not a valid template"),
        ({"prompt": "{text!x}"}, "task.format.prompt: '{text!x}' is not a valid template"),
        ({"prompt": "{text:>2000000000}"}, "a format wider than 1000 characters"),
        ({"prompt": "{text:.0001001f}"}, "a format wider than 1000 characters"),
        ({"prompt": "{text:%100000d}"}, "a format wider than 1000 characters"),
        ({"prompt": "{text:>٢٠٠٠٠٠٠}"}, "a format wider than 1000 characters"),
        ({"prompt": "{text}" * 1001}, "more than 1000 columns"),
        ({"prompt": "What?"}, "task.format.prompt: 'What?' contains no column"),
    ],
)
def test_a_bad_format(tmp_path: Path, update: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "x.jsonl", ROWS)
    assert message in message_of(path, LABELS.model_copy(update=update))


def test_one_class_only(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [ROWS[0], {**ROWS[0], "text": "b"}])
    assert f"{path}: all 2 examples have the answer 'flu'" in message_of(path, LABELS)


def test_ids_that_stand_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{**row, "id": "same"} for row in ROWS])
    assert f"{path}, line 2: id 'same' is already used in {path}, line 1" in message_of(path)


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    assert "none does not exist" in message_of(tmp_path / "none")
    assert "has no train file" in message_of(tmp_path)
    (tmp_path / "x.xlsx").write_text("x")
    assert "x.xlsx has an unknown ending. Known endings: .jsonl, .ndjson, .json, .csv, .tsv" in message_of(
        tmp_path / "x.xlsx"
    )
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "train.jsonl", ROWS)
    assert "both train.csv and train.jsonl" in message_of(tmp_path)


def test_an_error_in_the_test_file_names_it(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.jsonl", [{**ROWS[0], "answer": "pox"}])
    assert f"{tmp_path / 'test.jsonl'}, line 1: answer 'pox'" in message_of(tmp_path, LABELS)


def test_public_and_unlabelled_files_become_parts_of_their_own(tmp_path):
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "public.jsonl", [ROWS[0] | {"text": "rash"}])
    write(tmp_path / "unlabelled.csv", [{"text": "ache", "age": 1, "ward": "east", "answer": ""}])
    pool = load_custom(tmp_path, LABELS)
    assert pool.test is None
    assert list(pool.public or ()) == [TextExample("1", "rash (7):", ("flu", "cold"), 0, ("flu", "cold"), "north")]
    assert list(pool.unlabelled or ()) == [
        TextExample("1", "ache (1):", ("flu", "cold"), None, ("flu", "cold"), "east")
    ]


@pytest.mark.parametrize("row", [{"text": "ache"}, {"text": "ache", "answer": None}, {"text": "ache", "answer": "x"}])
def test_the_answer_of_an_unlabelled_row_does_not_matter(tmp_path, row):
    choices = LABELS.model_copy(update={"prompt": "{text}", "group": None})
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "unlabelled.jsonl", [row])
    (example,) = load_custom(tmp_path, choices).unlabelled or ()
    assert (example.prompt, example.answer, example.label) == ("ache", None, None)


def test_unlabelled_rows_with_choices_of_their_own_keep_them(tmp_path):
    write(
        tmp_path / "train.jsonl",
        [{"text": "a", "options": "x|y", "answer": "x"}, {"text": "b", "options": "x|y", "answer": "y"}],
    )
    write(tmp_path / "unlabelled.jsonl", [{"text": "c", "options": ["p", "q", "r"]}])
    (example,) = load_custom(tmp_path, COLUMN).unlabelled or ()
    assert (example.choices, example.labels, example.answer) == (("p", "q", "r"), ("A", "B", "C"), None)


def test_an_unlabelled_file_without_choices_is_refused(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "unlabelled.jsonl", [{"text": "c"}])
    with pytest.raises(UserError, match=r"unlabelled\.jsonl.*nothing to distill"):
        load_custom(tmp_path, FREE)


def test_paraphrases_are_filled_in_with_the_same_row(tmp_path):
    path = write(tmp_path / "train.jsonl", ROWS)
    others = {"paraphrases": ["At {age}, {text}?", "{text} ({age}):"]}
    first, second = load_custom(path, LABELS.model_copy(update=others)).train
    assert first.paraphrases == ("At 7, fever?", "fever (7):")
    assert second.paraphrases == ("At 8, cough, dry?", "cough, dry (8):")
    assert (first.prompt, first.content) == (EXPECTED[0].prompt, EXPECTED[0].content)
    assert "paraphrases" in first.to_wire()
    assert EXPECTED[0].to_wire().keys() == dataclasses.asdict(EXPECTED[0]).keys() - {
        "paraphrases"
    }  # as digests have it


@pytest.mark.parametrize(
    ("paraphrases", "words"),
    [
        (["{text} ({age})", "{text}?"], r"paraphrases\[1\].*the columns text, and .*prompt has text, age"),
        (["{text} {age} {ward}"], r"paraphrases\[0\].*ward"),
        (["{text} {age"], r"paraphrases\[0\].*not a valid template"),
        (["{text} {age:d}"], r"paraphrases\[0\] can't format 'old'"),
    ],
)
def test_paraphrases_need_the_columns_of_the_prompt(tmp_path, paraphrases, words):
    path = write(tmp_path / "train.jsonl", [ROWS[0], ROWS[1] | {"age": "old"}])
    with pytest.raises(UserError, match=words):
        load_custom(path, LABELS.model_copy(update={"paraphrases": paraphrases}))


def test_paraphrases_list_the_same_choices_as_the_prompt(tmp_path):
    row = {"q": "Which?", "a": "red", "b": "blue", "answer": "A"}
    path = write(tmp_path / "train.jsonl", [row, row | {"answer": "B", "q": "Who?"}])
    values = {"prompt": "{q}\nA. {a}\nB. {b}", "answer": "answer", "choices": ["A", "B"]}
    same, other = ("Say: {q}\nA. {a}\nB. {b}", "{q}\nA. {b}\nB. {a}")
    assert load_custom(path, FormatConfig(**values, paraphrases=[same])).train[0].paraphrases == (
        "Say: Which?\nA. red\nB. blue",
    )
    with pytest.raises(UserError, match="other choices"):
        load_custom(path, FormatConfig(**values, paraphrases=[other]))
