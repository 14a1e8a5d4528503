"""Tables with which trained models are asked, for tasks that ship with fedcollm and for one's own files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fedcollm.config import TaskConfig
from fedcollm.data.inputs import columns_of, inputs_of, load_inputs
from fedcollm.data.sources.icd10 import CHAPTERS
from fedcollm.data.sources.professions import load_professions
from fedcollm.data.sources.qa import load_qa
from fedcollm.errors import UserError

QUESTION = {"question": "What is red?", "choices": ["blood", "grass"], "labels": ["A", "B"], "answer": "A"}


def only(task, row, folder, classes=()):
    """The example of a single row."""
    return inputs_of(task, [row], folder, classes).examples[0]


def test_diagnosis_is_the_prompt_of_the_task(tmp_path):
    example = only(TaskConfig(name="icd10"), {"description": "Gout"}, tmp_path)
    assert (example.prompt, example.choices, example.label) == ("Gout:", CHAPTERS, None)


@pytest.mark.parametrize("name", ["arc_easy", "openbookqa", "commonsense_qa"])
def test_questions_are_asked_as_they_were_trained(tmp_path, name):
    lines = [QUESTION | {"id": str(i), "question": f"What is red {i}?", "answer": "AB"[i % 2]} for i in range(4)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trained = load_qa(name, tmp_path).train[0]
    asked = load_inputs(TaskConfig(name=name), tmp_path / "train.jsonl")
    one = asked.examples[0]
    assert (one.prompt, one.choices, one.labels) == (trained.prompt, trained.choices, trained.labels)
    assert (one.label, one.own_choices, one.id) == (None, True, "1")
    assert asked.rows[1]["question"] == "What is red 1?"  # rows are as the table has them


def test_exam_names_its_subject(tmp_path):
    subjects = ("anatomy", "management", "jurisprudence")
    lines = [QUESTION | {"id": f"{s}-test-{i}", "answer": "AB"[i % 2], "question": f"What is red {i}{s}?"}
             for s in subjects for i in range(2)]  # fmt: skip
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trained = load_professions(tmp_path).train[0]
    one = only(TaskConfig(name="professions"), lines[0] | {"subject": "anatomy"}, tmp_path)
    assert (one.prompt, one.choices) == (trained.prompt, trained.choices)


def test_scanned_digit_is_gray_and_small(tmp_path):
    Image.fromarray(np.repeat(np.repeat(np.eye(8, dtype=np.uint8) * 255, 3, 0), 3, 1)).save(tmp_path / "a.png")
    example = only(TaskConfig(name="digits"), {"image": "a.png"}, tmp_path)
    assert torch.equal(example.pixels, torch.eye(8)[None])
    assert example.label is None


@pytest.mark.parametrize(
    ("task", "column"),
    [
        ({"name": "shapes"}, "image"),
        ({"name": "spoken_words"}, "audio"),
        ({"name": "custom", "format": {"boxes": "coco"}}, "image"),
        ({"name": "custom", "format": {}}, "image"),
        ({"name": "custom", "format": {"audio": "clip", "answer": "word"}}, "clip"),
        ({"name": "custom", "format": {"audio": "clip", "transcript": "text"}}, "clip"),
        ({"name": "custom", "format": {"messages": "talk"}}, "talk"),
    ],
)
def test_column_that_is_needed_is_named(task, column, tmp_path):
    config = TaskConfig.model_validate(task)
    assert columns_of(config) == [column]
    with pytest.raises(UserError, match=f"row 1: there is no column '{column}'"):
        inputs_of(config, [{"other": "x"}], tmp_path)


def test_files_outside_of_the_tables_folder_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="outside"):
        inputs_of(TaskConfig(name="shapes"), [{"image": "../a.png"}], tmp_path / "in")


def test_conversation_is_asked_without_its_answer(tmp_path):
    config = TaskConfig.model_validate({"name": "custom", "format": {"messages": "talk"}})
    talk = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]
    with_answer, without = (only(config, {"talk": said}, tmp_path) for said in (talk, talk[:1]))
    assert with_answer == without
    assert with_answer.turns == (("user", "Hello?"),)
    assert with_answer.label is None


def test_table_in_another_encoding(tmp_path):
    config = TaskConfig.model_validate({"name": "custom", "format": {"prompt": "{note}:", "answer": "kind"}})
    (tmp_path / "a.csv").write_bytes("note\nMüll\n".encode("cp1252"))
    assert load_inputs(config, tmp_path / "a.csv", encoding="cp1252").examples[0].prompt == "Müll:"
