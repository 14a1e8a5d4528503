"""Text examples as JSON lines: what `evaluate --write-examples` writes, and a deployed client reads."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedcollm.data.files import read_jsonl
from fedcollm.errors import UserError
from fedcollm.modalities.text.task import TextExample

_EXAMPLE = TypeAdapter(TextExample)


def example_lines(examples: Iterable[TextExample]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(asdict(example)) + "\n" for example in examples)


def read_examples(path: Path) -> list[TextExample]:
    """Inverse of `example_lines`.

    Raises:
        UserError: the file can't be read, or a line is not an example.
    """
    examples = []
    for number, row in read_jsonl(path):
        try:
            example = _EXAMPLE.validate_python(row)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "the line"
            raise UserError(
                f"{path}, line {number}: {where}: {problem['msg']}. Write id, prompt, choices, answer (its index) and "
                "labels, or set task.name: custom with a task.format for your own columns."
            ) from error
        if not example.choices or example.answer is None or not 0 <= example.answer < len(example.choices):
            raise UserError(
                f"{path}, line {number}: answer {example.answer} is not the index of one of {len(example.choices)} "
                "choices."
            )
        if len(example.labels) != len(example.choices):
            raise UserError(f"{path}, line {number}: {len(example.labels)} labels for {len(example.choices)} choices.")
        examples.append(example)
    return examples
