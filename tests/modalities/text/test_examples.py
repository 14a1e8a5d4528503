import gzip
import json

import pytest

from fedcollm.errors import UserError
from fedcollm.modalities.text.examples import TextExample, example_lines, read_examples

EXAMPLES = [
    TextExample("a", "the cat is a", ("animal", "colour"), 0, ("ANIMAL", "COLOUR"), "site 1"),
    TextExample("b", "rouge est une « couleur »\nn'est-ce pas ?\u2028", ("oui", "non"), 1, ("A", "B")),
    TextExample("c", "one choice", ("free text",), 0, ("answer",)),
]
GOOD = {"id": "a", "prompt": "the cat is a", "choices": ["animal", "colour"], "answer": 0, "labels": ["A", "C"]}


def test_label_is_the_name_of_the_right_choice():
    assert [example.label for example in EXAMPLES] == ["ANIMAL", "B", "answer"]


def test_label_is_free_where_there_is_one_choice():
    assert [example.has_free_label for example in EXAMPLES] == [False, False, True]


def test_examples_come_back(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text(example_lines(EXAMPLES), encoding="utf-8")
    assert read_examples(file) == EXAMPLES


def test_one_line_an_example(tmp_path):
    lines = example_lines(EXAMPLES).splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a", "b", "c"]


def test_gzipped_file_and_blank_lines(tmp_path):
    file = tmp_path / "train.jsonl.gz"
    file.write_bytes(gzip.compress(("\n" + example_lines(EXAMPLES).replace("\n", "\n\n")).encode()))
    assert read_examples(file) == EXAMPLES


@pytest.mark.parametrize(
    ("changes", "own"),
    [
        ({"prompt": "Red?\nA. yes\nB. no\nAnswer:"}, True),
        ({"prompt": "Red?\nA. yes\nB. no\nAnswer:", "own_choices": False}, False),
        ({"prompt": "grade of the essay:"}, False),
        ({"prompt": "grade of the essay:", "own_choices": True}, True),
        ({"prompt": "Red?\nyes. or\nno. or", "choices": ["yes", "no"], "labels": ["yes", "no"]}, False),
    ],
)
def test_letters_are_an_examples_own_choices_if_the_file_says_so_or_the_prompt_lists_them(tmp_path, changes, own):
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps(GOOD | {"choices": ["A", "B"], "labels": ["A", "B"]} | changes))
    (example,) = read_examples(file)
    assert example.own_choices is own
    assert read_again(tmp_path, example) == example


def read_again(folder, example):
    file = folder / "again.jsonl"
    file.write_text(example_lines([example]))
    return read_examples(file)[0]


def test_group_may_be_left_out(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps(GOOD))
    assert read_examples(file) == [TextExample("a", "the cat is a", ("animal", "colour"), 0, ("A", "C"))]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": None}, "prompt: Input should be a valid string"),
        ({"prompt": ...}, "prompt: Field required"),
        ({"id": 5}, "id: Input should be a valid string"),
        ({"choices": "animal"}, "choices: Input should be a valid tuple"),
        ({"choices": ["animal", 5]}, "choices.1: Input should be a valid string"),
        ({"labels": ...}, "labels: Field required"),
        ({"answer": "first"}, "answer: Input should be a valid integer"),
        ({"answer": 0.5}, "answer: Input should be a valid integer"),
        ({"answer": 2}, "answer 2 is not an index of the 2 choices"),
        ({"answer": -1}, "answer -1 is not an index of the 2 choices"),
        ({"answer": None}, "answer None is not an index of the 2 choices"),
        ({"choices": [], "labels": []}, "answer 0 is not an index of the 0 choices"),
        ({"labels": ["A"]}, "1 labels for 2 choices"),
    ],
    ids=repr,
)
def test_malformed_line_is_named(tmp_path, changes, reason):
    file = tmp_path / "train.jsonl"
    row = {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}
    file.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps(row)}\n")
    with pytest.raises(UserError) as error:
        read_examples(file)
    assert str(error.value).startswith(f"{file}, line 3: {reason}")


@pytest.mark.parametrize("line", ["{", "[1]", "5", '"text"', "\xff"])
def test_line_that_is_no_object_is_named(tmp_path, line):
    file = tmp_path / "train.jsonl"
    file.write_bytes(f"{json.dumps(GOOD)}\n".encode() + line.encode("latin-1"))
    with pytest.raises(UserError, match=r"train\.jsonl, line 2: .*JSON"):
        read_examples(file)


def test_message_says_what_to_write(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text('{"text": "my own columns"}\n')
    with pytest.raises(UserError, match=r"line 1: id: .*task\.name: custom"):
        read_examples(file)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_file_is_refused(tmp_path, content):
    file = tmp_path / "train.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=r"train.jsonl is empty"):
        read_examples(file)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing.jsonl: no such file"):
        read_examples(tmp_path / "nothing.jsonl")
