"""Text examples, which are a prompt and its possible continuations, and their form as JSON lines."""

import json
import string
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import read_jsonl
from fedcollm.modalities.plain_text import check_text

#: Stands for a free answer that nobody knows yet: before a letter, a tokenizer splits a text as before most answers.
SOME_ANSWER = "a"


@dataclass(frozen=True)
class TextExample:
    """A prompt and its possible continuations.

    Attributes:
        id: id of the example, unique within its file.
        prompt: the text before the answer.
        choices: the possible continuations, without the space that joins them to the prompt. For free completion there
            is one, the answer itself.
        answer: index of the correct choice, or None if unlabelled.
        labels: short names of the choices, for partitions and confusion tables.
        group: natural client of the example, if the data has one.
        own_choices: whether the choices are this example's own although they are its labels, as letters whose texts the
            prompt lists. The loader knows it: letters can as well be labels that all examples share, such as grades.
        turns: the conversation before the answer, as pairs of a role and what it says; empty if the prompt is not one.
        paraphrases: other prompts with the same meaning, for augmentation.
    """

    id: str
    prompt: str
    choices: tuple[str, ...]
    answer: int | None
    labels: tuple[str, ...]
    group: str | None = None
    own_choices: bool = False
    turns: tuple[tuple[str, str], ...] = ()
    paraphrases: tuple[str, ...] = ()

    @property
    def label(self) -> str | None:
        """Label of the correct choice, or None if unlabelled."""
        return None if self.answer is None else self.labels[self.answer]

    @property
    def content(self) -> str:
        """The prompt, the conversation and the choices, which for free completion are the answer, in Unicode NFC."""
        return unicodedata.normalize("NFC", json.dumps([self.prompt, self.turns, self.choices], ensure_ascii=False))

    @property
    def text(self) -> str:
        r"""The prompt, or the conversation with one turn a line.

        >>> TextExample("1", "", ("Yes",), 0, ("Yes",), turns=(("user", "Ready?"),)).text
        'user: Ready?'
        """
        return "\n".join(f"{role}: {content}" for role, content in self.turns) or self.prompt

    @property
    def has_free_label(self) -> bool:
        """Whether the label is free text instead of one of several choices."""
        return len(self.choices) == 1

    @property
    def shares_labels(self) -> bool:
        """Whether the choices are labels that all examples of the task have, instead of choices of its own.

        >>> TextExample("1", "roses are", ("red", "blue"), 0, ("red", "blue")).shares_labels
        True
        >>> TextExample("1", "roses are", ("red", "blue"), 0, ("A", "B")).shares_labels
        False
        """
        return self.choices == self.labels and not self.own_choices

    def without_label(self) -> "TextExample":
        """Return the same example without its answer."""
        return replace(self, answer=None)

    def with_answer(self, answer: int) -> "TextExample":
        """Return the same example with the choice of this index as its answer."""
        return replace(self, answer=answer)

    def to_wire(self) -> dict[str, Any]:
        """Return the fields as plain values, without paraphrases if there are none: digests are older than these."""
        values = asdict(self)
        return values if self.paraphrases else {name: v for name, v in values.items() if name != "paraphrases"}


def listed_choices(prompt: str, labels: Sequence[str]) -> tuple[str, ...] | None:
    r"""Return the texts of choices that are letters, if a prompt lists all of them on lines of their own; else None.

    >>> listed_choices("Roses are\nA. red\nB. blue", ("A", "B"))
    ('red', 'blue')
    """
    lines = dict(line.split(". ", 1) for line in prompt.splitlines() if ". " in line)
    lettered = tuple(labels) == tuple(string.ascii_uppercase[: len(labels)])
    return tuple(lines[label] for label in labels) if lettered and lines.keys() >= set(labels) else None


_EXAMPLE = TypeAdapter(TextExample)


def example_lines(examples: Iterable[TextExample]) -> str:
    """Return examples as text with one JSON object per line."""
    return "".join(json.dumps(example.to_wire()) + "\n" for example in examples)


def read_examples(path: Path) -> list[TextExample]:
    """Return the examples that `example_lines` wrote.

    Where a line does not say whether choices that equal their labels are the example's own, they are if the prompt
    lists their texts.

    Raises:
        UserError: the file can't be read, or a line is not an example.
    """
    return [_example(row, f"{path}, line {number}") for number, row in read_jsonl(path)]


def _example(row: dict[str, object], place: str) -> TextExample:
    check_text(row, place)
    try:
        example = _EXAMPLE.validate_python(row)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the line"
        raise UserError(
            f"{place}: {where}: {problem['msg']}. Each line needs id, prompt, choices, answer (an index) and labels. "
            "For your own columns, set task.name: custom and task.format."
        ) from error
    if not example.choices or example.answer is None or not 0 <= example.answer < len(example.choices):
        raise UserError(
            f"{place}: answer {example.answer} is not an index of the {len(example.choices)} choices. Write the index "
            "of the correct choice, starting at 0."
        )
    if len(example.labels) != len(example.choices):
        raise UserError(
            f"{place}: {len(example.labels)} labels for {len(example.choices)} choices. Give each choice one label."
        )
    if "own_choices" in row or example.choices != example.labels:
        return example
    return replace(example, own_choices=listed_choices(example.prompt, example.labels) is not None)
