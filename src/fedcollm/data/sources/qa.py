"""The four question answering tasks of the paper: ARC-Easy, ARC-Challenge, OpenBookQA, CommonsenseQA.

Prompts equal those of lm-evaluation-harness 0.4 (`lm_eval/tasks/{arc,openbookqa,commonsense_qa}`), so that
scores can be compared with published ones.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcollm.data.files import JSONL, LETTERS, check_ids, find_part
from fedcollm.data.partition import check_classes
from fedcollm.errors import UserError
from fedcollm.modalities.base import Pool
from fedcollm.modalities.jsonl import read_jsonl, shorten
from fedcollm.modalities.text.examples import TextExample

LAYOUT = (
    "a directory with train.jsonl and test.jsonl or dev.jsonl (or .jsonl.gz), one "
    '{"id": "1", "question": "...", "choices": ["...", "..."], "labels": ["A", "B"], "answer": "B"} a line'
)


@dataclass(frozen=True)
class QaSource:
    """Where a task's data is.

    Attributes:
        hub: id on the Hugging Face hub.
        config: name of the configuration there, if it has several.
        question: column of the question there.
        test: the split there that has public answers and is for scoring.
        folders: names of its folder, where task.path is the folder above.
    """

    hub: str
    config: str | None
    question: str
    test: str
    folders: tuple[str, ...]


QA_TASKS = {
    "arc_easy": QaSource("allenai/ai2_arc", "ARC-Easy", "question", "test", ("arc_easy",)),
    "arc_challenge": QaSource("allenai/ai2_arc", "ARC-Challenge", "question", "test", ("arc_challenge",)),
    "openbookqa": QaSource("allenai/openbookqa", "main", "question_stem", "test", ("openbookqa", "obqa")),
    "commonsense_qa": QaSource("tau/commonsense_qa", None, "question", "validation", ("commonsense_qa", "csqa")),
}


def load_qa(name: str, path: Path | None) -> Pool:
    """Return the questions of one of the tasks, from files or from the hub.

    Args:
        name: a key of `QA_TASKS`.
        path: the task's folder or the one above it; None: the Hugging Face hub, or its cache.

    Raises:
        UserError: unknown task, the hub cannot be reached, or a file is missing or broken.
    """
    if name not in QA_TASKS:
        raise UserError(f"task.name: unknown task {name!r}. Known: {', '.join(QA_TASKS)}.")
    train, test = _from_hub(name) if path is None else _from_files(name, path)
    check_classes(train, f"the training data of {name}")
    return Pool(train, test)


def _from_files(name: str, path: Path) -> tuple[list[TextExample], list[TextExample] | None]:
    folders = [path / folder for folder in QA_TASKS[name].folders] + [path]
    for folder in folders:
        train = find_part(folder, "train", JSONL)
        if train is not None:
            test = find_part(folder, "test", JSONL) or find_part(folder, "dev", JSONL)
            return _read(name, train), _read(name, test) if test else None
    raise UserError(
        f"task.path: no train.jsonl or train.jsonl.gz in {' or '.join(map(str, folders))}. "
        f"task.path for {name} is {LAYOUT}."
    )


def _read(name: str, path: Path) -> list[TextExample]:
    return _examples(name, placed_rows(path))


def _examples(name: str, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[TextExample]:
    def example(question: Question, place: str) -> TextExample:
        prompt, continuations = _prompt(name, question)
        return TextExample(question.id, prompt, continuations, question.answer, question.letters)

    return read_questions(rows, example)


@dataclass(frozen=True)
class Question:
    """A checked row; its choices are called A, B, C ... by position, whatever the file calls them.

    Attributes:
        id: unique within the data.
        text: the question itself.
        choices: the possible answers.
        answer: index of the right one.
    """

    id: str
    text: str
    choices: tuple[str, ...]
    answer: int

    @property
    def letters(self) -> tuple[str, ...]:
        """Names of the choices."""
        return tuple(LETTERS[: len(self.choices)])

    @property
    def lettered(self) -> str:
        """The question, a line for each choice after its letter, and "Answer:"."""
        lines = [f"{letter}. {choice}" for letter, choice in zip(self.letters, self.choices, strict=True)]
        return "\n".join([self.text.strip(), *lines, "Answer:"])


def placed_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return (place for messages, row) for each line of a JSON lines file.

    Raises:
        UserError: as `read_jsonl`.
    """
    return [(f"{path}, line {number}", row) for number, row in read_jsonl(path)]


def read_questions(
    rows: Iterable[tuple[str, Mapping[str, Any]]], example: Callable[[Question, str], TextExample]
) -> list[TextExample]:
    """Return examples of checked rows with distinct ids.

    Args:
        rows: (place for messages, row with id, question, choices, labels and answer).
        example: makes an example of a question and its place.

    Raises:
        UserError: a row is broken, or an id stands twice.
    """
    pairs = [(place, example(_question(row, place), place)) for place, row in rows]
    check_ids([example for _, example in pairs], [place for place, _ in pairs])
    return [example for _, example in pairs]


def _question(row: Mapping[str, Any], place: str) -> Question:
    texts = {field: _field(row, field, str, place) for field in ("id", "question", "answer")}
    choices, labels = _field(row, "choices", list, place), _field(row, "labels", list, place)
    for field, values in (("choices", choices), ("labels", labels)):
        if not all(isinstance(value, str) and value.strip() for value in values):
            raise UserError(f"{place}: {field} {shorten(values)} must all be texts, none of them empty.")
    if not 2 <= len(choices) <= len(LETTERS):
        raise UserError(f"{place}: {len(choices)} choices. Give at least 2, at most {len(LETTERS)}.")
    if len(labels) != len(choices) or len(set(labels)) != len(labels):
        raise UserError(
            f"{place}: labels {shorten(labels)} do not name the {len(choices)} choices one by one. "
            "Give each choice its own label."
        )
    if texts["answer"] not in labels:
        raise UserError(
            f"{place}: answer {texts['answer']!r} is not among the labels {shorten(labels)}. Give one of them."
        )
    return Question(texts["id"], texts["question"], tuple(choices), labels.index(texts["answer"]))


def _field(row: Mapping[str, Any], field: str, kind: type, place: str) -> Any:
    if field not in row:
        raise UserError(
            f"{place}: field {field!r} is missing. Each line needs id, question, choices, labels and answer."
        )
    value = row[field]
    if not isinstance(value, kind) or (kind is str and not value.strip()):
        wanted = "a text that is not empty" if kind is str else "a list"
        raise UserError(f"{place}: field {field!r} is {shorten(value)}; it must be {wanted}.")
    return value


def _prompt(name: str, question: Question) -> tuple[str, tuple[str, ...]]:
    """Return prompt and continuations as in lm-evaluation-harness."""
    if name == "openbookqa":
        return question.text, question.choices
    if name == "commonsense_qa":
        return f"Question: {question.lettered}", question.letters
    return f"Question: {question.text}\nAnswer:", question.choices


def _from_hub(name: str) -> tuple[list[TextExample], list[TextExample]]:
    source = QA_TASKS[name]
    parts = download(name, source.hub, source.config, LAYOUT)
    train, test = (
        [(f"{source.hub} {split}, row {i}", _record(source, row)) for i, row in enumerate(parts[split], 1)]
        for split in ("train", source.test)
    )
    return _examples(name, train), _examples(name, test)


def download(name: str, hub: str, config: str | None, layout: str) -> Mapping[str, Any]:
    """Return all splits of a data set of the Hugging Face hub, or of its cache.

    Args:
        name: of the task.
        hub: id of the data set there.
        config: name of its configuration, if it has several.
        layout: what task.path may be instead.

    Raises:
        UserError: the hub cannot be reached, and the cache does not have it.
    """
    try:
        return _download(hub, config)
    except Exception as error:  # many kinds, of datasets, huggingface_hub, httpx and the file system
        raise UserError(
            f"task {name}: cannot load {hub} from the Hugging Face hub ({type(error).__name__}: "
            f"{_first_line(error)}). "
            f"Connect to it once, or set task.path to {layout}."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or "no reason given").splitlines()[0].rstrip(".")


def _record(source: QaSource, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the hub in the format of our files."""
    return {
        "id": row["id"],
        "question": row[source.question],
        "choices": list(row["choices"]["text"]),
        "labels": list(row["choices"]["label"]),
        "answer": row["answerKey"].strip(),
    }


def _download(hub: str, name: str | None) -> Mapping[str, Any]:
    """Return all splits, from the hub if it answers within 5 s, else from the cache of `datasets`."""
    from datasets import config, load_dataset
    from huggingface_hub import HfApi

    unreachable, offline = None, config.HF_HUB_OFFLINE
    try:
        HfApi().dataset_info(hub, timeout=5)
    except Exception as error:  # whatever it is: the cache may do
        unreachable, config.HF_HUB_OFFLINE = error, True  # else `datasets` tries for minutes
    try:
        return load_dataset(hub, name)  # pyright: ignore[reportReturnType]
    except Exception as error:
        raise unreachable or error from None
    finally:
        config.HF_HUB_OFFLINE = offline
