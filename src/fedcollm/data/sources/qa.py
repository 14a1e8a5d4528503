"""The four question answering tasks of the paper: ARC-Easy, ARC-Challenge, OpenBookQA, CommonsenseQA.

The prompts equal those of lm-evaluation-harness 0.4 (`lm_eval/tasks/{arc,openbookqa,commonsense_qa}`), so that the
scores are comparable with published ones.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedcollm.data.choices import LETTERS
from fedcollm.data.partition import check_classes
from fedcollm.data.parts import find_part
from fedcollm.data.pool import Pool
from fedcollm.data.rows import check_ids
from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import read_jsonl, shorten
from fedcollm.modalities.text.examples import TextExample

#: Endings of the files of these tasks.
JSONL = (".jsonl", ".jsonl.gz")

LAYOUT = (
    "a directory with train.jsonl and test.jsonl or dev.jsonl (or .jsonl.gz). Each line is "
    '{"id": "1", "question": "...", "choices": ["...", "..."], "labels": ["A", "B"], "answer": "B"}'
)


@dataclass(frozen=True)
class QaSource:
    """The source of a task's data.

    Attributes:
        hub: id of the data set on the Hugging Face hub.
        config: name of the data set's configuration, if it has several.
        question: name of the column with the question.
        test: the split for scoring, which must have public answers.
        folders: possible names of the task's directory within task.path.
    """

    hub: str
    config: str | None
    question: str
    test: str
    folders: tuple[str, ...]


#: Name of a task to the source of its data.
QA_TASKS: Mapping[str, QaSource] = {
    "arc_easy": QaSource("allenai/ai2_arc", "ARC-Easy", "question", "test", ("arc_easy",)),
    "arc_challenge": QaSource("allenai/ai2_arc", "ARC-Challenge", "question", "test", ("arc_challenge",)),
    "openbookqa": QaSource("allenai/openbookqa", "main", "question_stem", "test", ("openbookqa", "obqa")),
    "commonsense_qa": QaSource("tau/commonsense_qa", None, "question", "validation", ("commonsense_qa", "csqa")),
}


#: Tasks whose prompts list the choices, which are then letters.
LETTERED = ("commonsense_qa", "professions")


def load_qa(name: str, path: Path | None) -> Pool:
    """Return the questions of one of the tasks, from files or from the hub.

    Args:
        name: a key of `QA_TASKS`.
        path: the task's directory or its parent; None for the Hugging Face hub or its cache.

    Raises:
        UserError: the task is unknown, the hub can't be reached, or a file is missing or invalid.
    """
    if name not in QA_TASKS:
        raise UserError(f"task.name: unknown task {name!r}. Choose one of {', '.join(QA_TASKS)}.")
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
        f"task.path: there is no train.jsonl or train.jsonl.gz in {' or '.join(map(str, folders))}. "
        f"For {name}, give {LAYOUT}."
    )


def _read(name: str, path: Path) -> list[TextExample]:
    return _examples(name, placed_rows(path))


def _examples(name: str, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[TextExample]:
    def example(question: Question, place: str) -> TextExample:
        prompt, continuations = _prompt(name, question)
        return TextExample(question.id, prompt, continuations, question.answer, question.letters, own_choices=True)

    return read_questions(rows, example)


@dataclass(frozen=True)
class Question:
    """A validated row. Its choices are named A, B, C ... by position, regardless of their labels in the file.

    Attributes:
        id: id of the question, unique within the data.
        text: the question itself.
        choices: the possible answers.
        answer: index of the right answer.
    """

    id: str
    text: str
    choices: tuple[str, ...]
    answer: int

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the choices."""
        return tuple(LETTERS[: len(self.choices)])

    @property
    def lettered(self) -> str:
        """The question, one line per choice that starts with its letter, and "Answer:"."""
        return _lettered(self.text.strip(), self.letters, self.choices)


def _lettered(text: str, letters: Sequence[str], choices: Sequence[str]) -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]
    return "\n".join([text, *lines, "Answer:"])


def with_letters(example: TextExample) -> TextExample:
    r"""Return an example whose prompt lists its choices, and whose choices are their letters.

    >>> with_letters(TextExample("1", "Which?", ("red", "blue"), None, ("A", "B"))).prompt
    'Which?\nA. red\nB. blue\nAnswer:'
    """
    prompt = _lettered(example.prompt.strip(), example.labels, example.choices)
    return replace(example, prompt=prompt, choices=example.labels, own_choices=True)


def placed_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of a JSON lines file, each after its place (file and line), for messages.

    Raises:
        UserError: the file can't be read, or a line is invalid (see `read_jsonl`).
    """
    return [(f"{path}, line {number}", row) for number, row in read_jsonl(path)]


def read_questions(
    rows: Iterable[tuple[str, Mapping[str, Any]]], example: Callable[[Question, str], TextExample]
) -> list[TextExample]:
    """Check rows and return them as examples with distinct ids.

    Args:
        rows: rows with id, question, choices, labels and answer, each after its place, for messages.
        example: returns the example of a question, given the question and its place.

    Raises:
        UserError: a row is invalid, or two rows have the same id.
    """
    pairs = [(place, example(_question(row, place), place)) for place, row in rows]
    check_ids([example for _, example in pairs], [place for place, _ in pairs])
    return [example for _, example in pairs]


def _question(row: Mapping[str, Any], place: str) -> Question:
    texts = {field: _field(row, field, str, place) for field in ("id", "question", "answer")}
    choices, labels = _field(row, "choices", list, place), _field(row, "labels", list, place)
    for field, values in (("choices", choices), ("labels", labels)):
        if not all(isinstance(value, str) and value.strip() for value in values):
            raise UserError(f"{place}: {field} {shorten(values)}: each must be text that is not empty.")
    if not 2 <= len(choices) <= len(LETTERS):
        raise UserError(f"{place}: there are {len(choices)} choices. Give at least 2 and at most {len(LETTERS)}.")
    if len(labels) != len(choices) or len(set(labels)) != len(labels):
        raise UserError(
            f"{place}: labels {shorten(labels)} do not match the {len(choices)} choices. "
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
        wanted = "text that is not empty" if kind is str else "a list"
        raise UserError(f"{place}: field {field!r} is {shorten(value)}. It must be {wanted}.")
    return value


def _prompt(name: str, question: Question) -> tuple[str, tuple[str, ...]]:
    """Return the prompt and the continuations of a question as in lm-evaluation-harness."""
    if name == "openbookqa":
        return question.text, question.choices
    if name == "commonsense_qa":
        return f"Question: {question.lettered}", question.letters
    return f"Question: {question.text}\nAnswer:", question.choices


def _from_hub(name: str) -> tuple[list[TextExample], list[TextExample]]:
    source = QA_TASKS[name]
    parts = download(f"task {name}", source.hub, source.config, f"set task.path to {LAYOUT}")
    train, test = (
        [(f"{source.hub} {split}, row {i}", _record(source, row)) for i, row in enumerate(parts[split], 1)]
        for split in ("train", source.test)
    )
    return _examples(name, train), _examples(name, test)


def download(what: str, hub: str, config: str | None, instead: str) -> Mapping[str, Any]:
    """Return all splits of a data set from the Hugging Face hub or its cache.

    Args:
        what: what the data set is for, for the message.
        hub: id of the data set on the hub.
        config: name of the data set's configuration, if it has several.
        instead: what the user can do without the hub, for the message.

    Raises:
        UserError: the hub can't be reached, and the data set is not in the cache.
    """
    try:
        return _download(hub, config)
    except Exception as error:  # datasets, huggingface_hub, httpx and the file system raise many kinds
        raise UserError(
            f"{what}: can't load {hub} from the Hugging Face hub ({type(error).__name__}: "
            f"{_first_line(error)}). Connect to the hub once, or {instead}."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or "no reason given").splitlines()[0].rstrip(".")


def _record(source: QaSource, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the hub's data set in the format of our files."""
    return {
        "id": row["id"],
        "question": row[source.question],
        "choices": list(row["choices"]["text"]),
        "labels": list(row["choices"]["label"]),
        "answer": row["answerKey"].strip(),
    }


def _download(hub: str, name: str | None) -> Mapping[str, Any]:
    """Return all splits, from the hub if it answers within 5 s, otherwise from the cache of `datasets`."""
    import datasets  # pyright: ignore[reportMissingTypeStubs]
    from huggingface_hub import HfApi

    library: Any = datasets
    config = library.config
    unreachable, offline = None, config.HF_HUB_OFFLINE
    try:
        HfApi().dataset_info(hub, timeout=5)
    except Exception as error:  # whatever the reason, the data set may be in the cache
        unreachable, config.HF_HUB_OFFLINE = error, True  # without this, `datasets` retries for minutes
    try:
        return library.load_dataset(hub, name)
    except Exception as error:
        raise unreachable or error from None
    finally:
        config.HF_HUB_OFFLINE = offline
