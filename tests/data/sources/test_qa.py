import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from tests.conftest import SHARED, needs_shared

from fedcollm.data.sources.qa import QA_TASKS, load_qa
from fedcollm.errors import UserError

GOOD = [
    {"id": "a", "question": "Sky?", "choices": ["blue", "red"], "labels": ["1", "2"], "answer": "1"},
    {"id": "b", "question": " Grass? ", "choices": ["blue", "green", "red"], "labels": ["A", "B", "C"], "answer": "B"},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def without(field: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD[1].items() if key != field}


def test_names_are_those_of_lm_evaluation_harness() -> None:
    assert list(QA_TASKS) == ["arc_easy", "arc_challenge", "openbookqa", "commonsense_qa"]


def test_arc_prompt_and_labels_by_position(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GOOD)
    first, second = load_qa("arc_easy", tmp_path).train
    assert first.prompt == "Question: Sky?\nAnswer:"
    assert first.choices == ("blue", "red")
    assert first.labels == ("A", "B")
    assert (first.answer, first.label, first.group) == (0, "A", None)
    assert second.prompt == "Question:  Grass? \nAnswer:"
    assert second.label == "B"


def test_openbookqa_prompt_is_the_bare_question(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GOOD)
    first = load_qa("openbookqa", tmp_path).train[0]
    assert (first.prompt, first.choices) == ("Sky?", ("blue", "red"))


def test_commonsense_qa_prompt_lists_lettered_choices(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GOOD)
    second = load_qa("commonsense_qa", tmp_path).train[1]
    assert second.prompt == "Question: Grass?\nA. blue\nB. green\nC. red\nAnswer:"
    assert second.choices == second.labels == ("A", "B", "C")
    assert second.own_choices
    assert second.answer == 1


@pytest.mark.parametrize("folder", ["openbookqa", "obqa", "."])
def test_the_folder_may_be_the_tasks_own_or_the_one_above(tmp_path: Path, folder: str) -> None:
    write(tmp_path / folder / "train.jsonl.gz", GOOD)
    assert [example.id for example in load_qa("openbookqa", tmp_path).train] == ["a", "b"]


def test_test_file_goes_before_dev_and_both_may_be_absent(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GOOD)
    assert load_qa("arc_easy", tmp_path).test is None
    write(tmp_path / "dev.jsonl", GOOD[:1])
    assert [example.id for example in load_qa("arc_easy", tmp_path).test or ()] == ["a"]
    write(tmp_path / "test.jsonl.gz", GOOD[1:])
    assert [example.id for example in load_qa("arc_easy", tmp_path).test or ()] == ["b"]


BAD_ROWS = [
    (without("question"), "line 2: field 'question' is missing"),
    (without("labels"), "line 2: field 'labels' is missing"),
    ({**GOOD[1], "question": "  "}, "line 2: field 'question' is '  '. It must be text that is not empty"),
    ({**GOOD[1], "id": 7}, "line 2: field 'id' is 7. It must be text"),
    ({**GOOD[1], "choices": "blue"}, "line 2: field 'choices' is 'blue'. It must be a list"),
    ({**GOOD[1], "choices": []}, "line 2: there are 0 choices"),
    ({**GOOD[1], "choices": ["blue", "", "red"]}, "line 2: choices ['blue', '', 'red']: each must be text"),
    ({**GOOD[1], "choices": ["blue", "green"]}, "line 2: labels ['A', 'B', 'C'] do not match the 2 choices"),
    ({**GOOD[1], "labels": ["A", "B", "B"]}, "line 2: labels ['A', 'B', 'B'] do not match the 3 choices"),
    ({**GOOD[1], "answer": "D"}, "line 2: answer 'D' is not among the labels ['A', 'B', 'C']"),
    ({**GOOD[1], "id": "a"}, "line 2: id 'a' is already used in"),
    ('{"id": "b",\n', "line 2: not valid JSON"),
    ("[1]\n", "line 2: [1] is not a JSON object"),
    ("null\n", "line 2: None is not a JSON object"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS, ids=[message for _, message in BAD_ROWS])
def test_a_bad_line_is_named(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "train.jsonl", [GOOD[0], row])
    with pytest.raises(UserError) as error:
        load_qa("arc_easy", tmp_path)
    assert f"{path}, {message}" in str(error.value)


def test_more_choices_than_letters(tmp_path: Path) -> None:
    names = [str(i) for i in range(27)]
    write(tmp_path / "train.jsonl", [{**GOOD[0], "choices": names, "labels": names}])
    with pytest.raises(UserError, match=r"line 1: there are 27 choices.*26"):
        load_qa("arc_easy", tmp_path)


def test_one_class_only(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GOOD[:1])
    with pytest.raises(UserError, match=r"arc_easy: all 1 .*'A'"):
        load_qa("arc_easy", tmp_path)


def test_no_train_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_qa("openbookqa", tmp_path)
    assert f"no train.jsonl or train.jsonl.gz in {tmp_path}/openbookqa or {tmp_path}/obqa or" in str(error.value)
    assert '"labels": ["A", "B"]' in str(error.value)


def test_two_train_files(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GOOD)
    write(tmp_path / "train.jsonl.gz", GOOD)
    with pytest.raises(UserError, match=r"both train\.jsonl and train\.jsonl\.gz"):
        load_qa("arc_easy", tmp_path)


def test_unknown_task() -> None:
    with pytest.raises(UserError, match=r"'boolq'.*arc_easy, arc_challenge"):
        load_qa("boolq", None)


HUB_ROWS = [
    {"id": "h1", "question_stem": "Sun?", "choices": {"text": ["hot", "cold"], "label": ["A", "B"]}, "answerKey": "A"},
    {"id": "h2", "question_stem": "Ice?", "choices": {"text": ["hot", "cold"], "label": ["A", "B"]}, "answerKey": "B "},
]


def replace_hub(monkeypatch: pytest.MonkeyPatch, info: Callable[..., Any], load: Callable[..., Any]) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", load)


def test_rows_of_the_hub_become_the_same_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*arguments: Any) -> dict[str, Any]:
        asked.append(arguments)
        return {"train": HUB_ROWS, "test": HUB_ROWS[:1]}

    replace_hub(monkeypatch, lambda *_, **__: None, load)
    pool = load_qa("openbookqa", None)
    assert asked == [("allenai/openbookqa", "main")]
    assert [(e.id, e.prompt, e.choices, e.label) for e in pool.train] == [
        ("h1", "Sun?", ("hot", "cold"), "A"),
        ("h2", "Ice?", ("hot", "cold"), "B"),
    ]
    assert [e.id for e in pool.test or ()] == ["h1"]


def test_a_hub_that_does_not_answer_leaves_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    offline = []

    def info(*_: Any, timeout: float, **__: Any) -> None:
        raise TimeoutError(f"timed out after {timeout} s")

    def load(*_: Any) -> dict[str, Any]:
        offline.append(datasets.config.HF_HUB_OFFLINE)
        return {"train": HUB_ROWS, "test": HUB_ROWS}

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    replace_hub(monkeypatch, info, load)
    assert len(load_qa("openbookqa", None).train) == 2
    assert offline == [True]
    assert datasets.config.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("name", list(QA_TASKS))
def test_a_hub_out_of_reach_is_one_message_with_the_way_out(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def info(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known\nmore")

    def load(*_: Any) -> None:
        raise FileNotFoundError("not in the cache")

    replace_hub(monkeypatch, info, load)
    with pytest.raises(UserError) as error:
        load_qa(name, None)
    message = str(error.value)
    assert f"can't load {QA_TASKS[name].hub} from the Hugging Face hub (OSError: Name or service not known)." in message
    assert "set task.path to a directory with train.jsonl and test.jsonl or dev.jsonl" in message


def test_an_error_of_the_download_itself_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> None:
        raise ValueError("no space left")

    replace_hub(monkeypatch, lambda *_, **__: None, load)
    with pytest.raises(UserError, match=r"\(ValueError: no space left\)"):
        load_qa("arc_easy", None)


@needs_shared
@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("arc_easy", 2251, 2376),
        ("arc_challenge", 1119, 1172),
        ("openbookqa", 4957, 500),
        ("commonsense_qa", 9741, 1221),
    ],
)
def test_the_papers_data(name: str, train: int, test: int) -> None:
    pool = load_qa(name, SHARED)
    assert (len(pool.train), len(pool.test or ())) == (train, test)


@needs_shared
def test_a_prompt_of_the_papers_data() -> None:
    first = load_qa("commonsense_qa", SHARED / "csqa").train[0]
    assert first.prompt == (
        "Question: The sanctions against the school were a punishing blow, and they seemed to what the efforts the "
        "school had made to change?\nA. ignore\nB. enforce\nC. authoritarian\nD. yell at\nE. avoid\nAnswer:"
    )
    assert first.label == "A"
