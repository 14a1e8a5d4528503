import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from tests.conftest import SHARED, needs_shared

from fedcollm.config.loading import load_config
from fedcollm.data.partition import split
from fedcollm.data.pool import Pool
from fedcollm.data.sources.professions import PROFESSIONS, load_professions
from fedcollm.errors import UserError


def row(id: str, question: str, answer: str = "A") -> dict[str, Any]:
    return {"id": id, "question": question, "choices": ["1", "2"], "labels": ["A", "B"], "answer": answer}


DEV = [row("anatomy-dev-0000", "Ribs?"), row("marketing-dev-0000", "Brand?", "B"), row("astronomy-dev-0000", "Sun?")]
TEST = [row("professional_law-test-0007", " Tort?\n"), row("high_school_physics-test-0000", "Force?", "B")]


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def message_of(path: Path | None) -> str:
    with pytest.raises(UserError) as error:
        load_professions(path)
    return str(error.value)


def public(pool: Pool) -> list[Any]:
    assert pool.public is not None
    return list(pool.public)


def test_no_subject_belongs_to_two_professions() -> None:
    subjects = [subject for some in PROFESSIONS.values() for subject in some]
    assert list(PROFESSIONS) == ["hospital", "bank", "court"]
    assert len(subjects) == len(set(subjects)) == 19


def test_professions_are_groups_and_other_subjects_public(tmp_path: Path) -> None:
    write(tmp_path / "dev.jsonl", DEV)
    write(tmp_path / "test.jsonl.gz", TEST)
    pool = load_professions(tmp_path)
    assert [(e.id, e.group) for e in pool.train] == [
        ("anatomy-dev-0000", "hospital"),
        ("marketing-dev-0000", "bank"),
        ("professional_law-test-0007", "court"),
    ]
    assert [(e.id, e.group) for e in public(pool)] == [
        ("astronomy-dev-0000", None),
        ("high_school_physics-test-0000", None),
    ]
    assert pool.test is None


def test_prompt_is_that_of_lm_evaluation_harness(tmp_path: Path) -> None:
    write(tmp_path / "dev.jsonl", DEV + TEST)
    third, last = load_professions(tmp_path).train[2], public(load_professions(tmp_path))[1]
    assert third.prompt == (
        "The following are multiple choice questions (with answers) about professional law.\n\n"
        "Tort?\nA. 1\nB. 2\nAnswer:"
    )
    assert (third.choices, third.labels, third.label) == (("A", "B"), ("A", "B"), "A")
    assert third.own_choices
    assert last.prompt.startswith(
        "The following are multiple choice questions (with answers) about high school physics."
    )
    assert last.label == "B"


def test_one_question_of_two_subjects_is_a_duplicate(tmp_path: Path) -> None:
    twins = [row("anatomy-val-0000", "Ribs?"), row("virology-val-0000", " ribs? "), row("sociology-val-0000", "RIBS?")]
    write(tmp_path / "dev.jsonl", DEV[1:] + TEST)
    write(tmp_path / "val.jsonl", twins)
    pool = load_professions(tmp_path)
    first, second, third = pool.train[2], pool.train[3], public(pool)[2]
    assert first.content == second.content == third.content == "ribs? a. 1 b. 2 answer:"
    assert first.without_label().content == first.content
    task = load_config("professions", **{"task.private_size": 1, "task.test_size": 1, "task.public_size": 2}).task
    with pytest.raises(UserError, match=r"4 training examples.* 3 .*2 duplicates"):
        split(pool, task, 0)


@pytest.mark.parametrize("folder", ["mmlu", "."])
def test_the_folder_may_be_mmlus_own_or_the_one_above(tmp_path: Path, folder: str) -> None:
    write(tmp_path / folder / "val.jsonl.gz", DEV + TEST)
    assert len(load_professions(tmp_path).train) == 3


def test_no_files(tmp_path: Path) -> None:
    message = message_of(tmp_path)
    assert f"no dev, val or test file (.jsonl or .jsonl.gz) in {tmp_path}/mmlu or {tmp_path}. " in message
    assert '{"id": "SUBJECT-SPLIT-NUMBER"' in message


def test_a_profession_without_questions(tmp_path: Path) -> None:
    write(tmp_path / "dev.jsonl", DEV)
    message = message_of(tmp_path)
    assert f"task professions: the data in {tmp_path} has no questions for the court" in message
    assert "international_law, jurisprudence, professional_law" in message


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("7-980", "Ribs?"), "line 2: id '7-980' has no subject. Write SUBJECT-SPLIT-NUMBER"),
        (row("-dev-1", "Ribs?"), "line 2: id '-dev-1' has no subject"),
        (row("anatomy-dev-1", "Ribs?", "C"), "line 2: answer 'C' is not among the labels ['A', 'B']"),
        (DEV[0], "line 2: id 'anatomy-dev-0000' is already used in"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "dev.jsonl", [DEV[0], bad])
    assert f"{path}, {message}" in message_of(tmp_path)


def test_an_id_that_stands_in_two_files(tmp_path: Path) -> None:
    write(tmp_path / "dev.jsonl", DEV + TEST)
    path = write(tmp_path / "test.jsonl", TEST)
    assert f"{path}, line 1: id 'professional_law-test-0007' is already used in {tmp_path}" in message_of(tmp_path)


def test_one_answer_only(tmp_path: Path) -> None:
    write(tmp_path / "dev.jsonl", [DEV[0], row("marketing-dev-1", "Price?"), TEST[0]])
    assert "the data of professions: all 3 examples have the answer 'A'" in message_of(tmp_path)


def test_too_few_public_questions(tmp_path: Path) -> None:
    write(tmp_path / "dev.jsonl", DEV + TEST)
    write(tmp_path / "val.jsonl", [row(f"virology-val-{i}", f"What is {i}?") for i in range(3)])
    task = load_config("professions", **{"task.private_size": 1, "task.test_size": 1, "task.public_size": 3}).task
    with pytest.raises(UserError) as error:
        split(load_professions(tmp_path), task, 0)
    assert "task professions: 3 public examples are needed (task.public_size 3 + " in str(error.value)
    assert "but there are 2. Lower one of these keys" in str(error.value)


def hub_row(subject: str, question: str, answer: int) -> dict[str, Any]:
    return {"question": question, "subject": subject, "choices": ["1", "2", "3", "4"], "answer": answer}


HUB_PARTS = {
    "auxiliary_train": [hub_row("", "Unused?", 0)],
    "dev": [hub_row("anatomy", "Ribs?", 3), hub_row("astronomy", "Sun?", 0)],
    "validation": [hub_row("marketing", "Brand?", 1)],
    "test": [hub_row("anatomy", "Skull?", 0), hub_row("jurisprudence", "Tort?", 2)],
}


def test_rows_of_the_hub_become_the_same_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*arguments: Any) -> dict[str, Any]:
        asked.append(arguments)
        return HUB_PARTS

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    pool = load_professions(None)
    assert asked == [("cais/mmlu", "all")]
    assert [(e.id, e.group, e.label) for e in pool.train] == [
        ("anatomy-dev-1", "hospital", "D"),
        ("marketing-validation-1", "bank", "B"),
        ("anatomy-test-1", "hospital", "A"),
        ("jurisprudence-test-2", "court", "C"),
    ]
    assert [e.id for e in public(pool)] == ["astronomy-dev-2"]
    assert pool.train[1].prompt == (
        "The following are multiple choice questions (with answers) about marketing.\n\n"
        "Brand?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    )


def test_a_hub_out_of_reach_is_one_message_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known\nmore")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = message_of(None)
    assert "can't load cais/mmlu from the Hugging Face hub (OSError: Name or service not known)." in message
    assert "set task.path to a directory with at least one of dev.jsonl" in message


@needs_shared
def test_mmlu_whole() -> None:
    pool = load_professions(SHARED)
    assert Counter(e.group for e in pool.train) == {"hospital": 2026, "bank": 1655, "court": 1972}
    assert len(public(pool)) == 10205
    subjects = {e.id.rsplit("-", 2)[0] for e in pool.train}
    assert subjects == {subject for some in PROFESSIONS.values() for subject in some}


def test_the_preset_fits_small_subjects_and_no_question_stands_in_two_parts(tmp_path: Path) -> None:
    """Twenty subjects: 50 questions of each of the professions' 19, where 6 stand twice, and 170 of astronomy."""
    numbers = {subject: 50 for some in PROFESSIONS.values() for subject in some} | {"astronomy": 170}
    rows = [
        row(f"{subject}-test-{i:04}", f"{subject} {i}?", "AB"[i % 2])
        for subject, count in numbers.items()
        for i in range(count)
    ]
    rows += [row(f"virology-val-{i:04}", f"Anatomy  {i}?", "AB"[i % 2]) for i in range(6)]
    write(tmp_path / "test.jsonl", rows)
    parts = split(load_professions(tmp_path), load_config("professions", **{"task.private_size": 80}).task, 0)
    assert parts.notes[1:] == ["client 0 holds bank", "client 1 holds court", "client 2 holds hospital"]
    assert parts.duplicates_removed == 6
    assert (len(parts.public), len(parts.test), sum(map(len, parts.private.values()))) == (160, 300, 240)
    assert {e.group for e in parts.public} == {None}
    assert {e.group for e in parts.test} == {"bank", "court", "hospital"}
    private = [e for part in parts.private.values() for e in part]
    assert len({e.content for e in parts.public + parts.test + private}) == 700


@needs_shared
def test_the_preset_fits_and_no_question_stands_in_two_parts() -> None:
    parts = split(load_professions(SHARED), load_config("professions").task, 0)
    assert parts.notes[1:] == ["client 0 holds bank", "client 1 holds court", "client 2 holds hospital"]
    assert parts.duplicates_removed == 142
    assert (len(parts.public), len(parts.test), sum(map(len, parts.private.values()))) == (160, 300, 480)
    assert {e.group for e in parts.public} == {None}
    assert {e.group for e in parts.test} == {"bank", "court", "hospital"}
    private = [e for part in parts.private.values() for e in part]
    assert len({e.content for e in parts.public + parts.test + private}) == 940
