"""Reading examples from files: strict, and every error names the file and the line or row."""

import csv
import json
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedcollm.config import FormatConfig
from fedcollm.data.partition import check_classes
from fedcollm.errors import UserError
from fedcollm.modalities.base import Pool
from fedcollm.modalities.jsonl import read_jsonl, shorten
from fedcollm.modalities.text.examples import TextExample

JSONL = (".jsonl", ".jsonl.gz")
SUFFIXES = (*JSONL, ".json", ".csv", ".parquet")
LETTERS = string.ascii_uppercase


def find_part(directory: Path, part: str, suffixes: Sequence[str] = SUFFIXES) -> Path | None:
    """Return the file that holds `train`, `dev` or `test`, or None.

    Raises:
        UserError: there are several.
    """
    found = [path for suffix in suffixes if (path := directory / f"{part}{suffix}").is_file()]
    if len(found) > 1:
        raise UserError(f"{directory}: both {found[0].name} and {found[1].name} are there; keep one of them.")
    return found[0] if found else None


def check_ids(examples: Sequence[TextExample], places: Sequence[str]) -> None:
    """Check that no id stands twice.

    Args:
        examples: in the order of their files.
        places: file and line of each example, for messages.

    Raises:
        UserError: an id stands twice.
    """
    first: dict[str, str] = {}
    for example, place in zip(examples, places, strict=True):
        if example.id in first:
            raise UserError(
                f"{place}: id {example.id!r} stands already in {first[example.id]}. Give each row its own id."
            )
        first[example.id] = place


def load_custom(path: Path, format: FormatConfig, several_classes: bool = True) -> Pool:
    """Return the user's own JSONL, CSV or Parquet as examples.

    Args:
        path: one file (then the test set is cut from it), or a directory with a `train` file and a
            `test` or `dev` file or neither.
        format: which columns make the prompt, the choices and the answer.
        several_classes: refuse training data with one answer only, which one client's data may have.

    Raises:
        UserError: a file, a row or the format is wrong.
    """
    fields = _template(format.prompt)
    if isinstance(format.choices, list):
        _check_choices(format.choices, "task.format.choices")
        if len({choice.strip() for choice in format.choices}) < len(format.choices):
            raise UserError(f"task.format.choices names a choice twice: {shorten(format.choices)}. Name each once.")
    if not path.exists():
        raise UserError(f"task.path: {path} does not exist. Give a file or a directory of {', '.join(SUFFIXES)} files.")
    train_path = find_part(path, "train") if path.is_dir() else path
    if train_path is None:
        raise UserError(
            f"task.path: {path} has no train file. Name one of them {' or '.join('train' + s for s in SUFFIXES)}."
        )
    test_path = (find_part(path, "test") or find_part(path, "dev")) if path.is_dir() else None
    train = _load(train_path, format, fields)
    if format.choices is not None and several_classes:
        check_classes(train, str(train_path))
    return Pool(train, _load(test_path, format, fields) if test_path else None)


def _load(path: Path, format: FormatConfig, fields: list[tuple[str, str, str, str]]) -> list[TextExample]:
    examples, places = [], []
    for position, (place, row) in enumerate(_rows(path), start=1):
        answer, choices, labels = _answer(row, format, place)
        examples.append(
            TextExample(
                id=_scalar(row, "id", place, "id") if "id" in row else str(position),
                prompt=_prompt(row, fields, place),
                choices=choices,
                answer=answer,
                labels=labels,
                group=None if format.group is None else _scalar(row, format.group, place, "task.format.group"),
            )
        )
        places.append(place)
    if not examples:
        raise UserError(f"{path} has no rows. Give it some, or set task.path to another file.")
    check_ids(examples, places)
    return examples


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place for messages, row) for each row of a file."""
    if path.name.endswith((*JSONL, ".json")):
        yield from ((f"{path}, line {number}", row) for number, row in read_jsonl(path))
    elif path.suffix == ".csv":
        yield from _csv_rows(path)
    elif path.suffix == ".parquet":
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(_parquet_rows(path), start=1))
    else:
        raise UserError(f"task.path: {path} has an unknown ending. Known: {', '.join(SUFFIXES)}.")


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    line, columns = 1, None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for fields in reader:
                if columns is None:
                    columns = fields
                    _check_header(columns, path)
                elif fields and len(fields) != len(columns):
                    raise UserError(
                        f"{path}, line {line}: {len(fields)} fields, but the header has {len(columns)}. "
                        "Quote texts that hold commas."
                    )
                elif fields:  # a blank line has none
                    yield f"{path}, line {line}", dict(zip(columns, fields, strict=True))
                line = reader.line_num + 1
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}, line {line}: cannot be read as CSV in UTF-8 ({error}).") from None


def _check_header(columns: list[str], path: Path) -> None:
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise UserError(f"{path}, line 1: the header names column {twice[0]!r} twice. Give each column its own name.")


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path).read().to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error}).") from None


def _template(prompt: str) -> list[tuple[str, str, str, str]]:
    """Return (literal, column, conversion, format spec) for each piece of a template; a column may have any name."""
    try:
        pieces = [
            (text, column or "", conversion or "", spec or "") for text, column, spec, conversion in _pieces(prompt)
        ]
    except ValueError as error:
        raise UserError(
            f"task.format.prompt: {prompt!r} is no template ({error}). Write columns as {{column}}."
        ) from None
    if not any(column for _, column, _, _ in pieces):
        raise UserError(f"task.format.prompt: {prompt!r} names no column. Write columns as {{column}}.")
    return pieces


def _pieces(prompt: str) -> Iterator[tuple[str, str | None, str | None, str | None]]:
    for text, column, spec, conversion in string.Formatter().parse(prompt):
        if column == "":
            raise ValueError("{} without a name")
        if conversion not in (None, "r", "s", "a"):
            raise ValueError(f"unknown conversion !{conversion}")
        yield text, column, spec, conversion


def _prompt(row: dict[str, Any], fields: list[tuple[str, str, str, str]], place: str) -> str:
    parts = []
    for text, column, conversion, spec in fields:
        parts.append(text)
        if column:
            value = _value(row, column, place, "task.format.prompt")
            if isinstance(value, (list, dict)):
                raise UserError(
                    f"{place}: column {column!r} holds {shorten(value)}; a prompt needs a text or a number."
                )
            try:
                parts.append(format(string.Formatter().convert_field(value, conversion or None), spec))
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{place}: task.format.prompt cannot format column {column!r}, {shorten(value)} ({error})."
                ) from None
    return "".join(parts)


def _value(row: dict[str, Any], column: str, place: str, key: str) -> Any:
    if column not in row:
        raise UserError(f"{place}: no column {column!r} ({key}). Columns there: {', '.join(map(str, row))}.")
    value = row[column]
    if value is None or value != value or (isinstance(value, str) and not value.strip()):  # NaN differs from itself
        raise UserError(f"{place}: column {column!r} ({key}) is empty. Fill it in or drop the row.")
    return value


def _scalar(row: dict[str, Any], column: str, place: str, key: str) -> str:
    value = _value(row, column, place, key)
    if isinstance(value, (list, dict)):
        raise UserError(f"{place}: column {column!r} ({key}) holds {shorten(value)}; it needs a text or a number.")
    return str(value).strip()


def _answer(row: dict[str, Any], format: FormatConfig, place: str) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """Return the index of the right choice, the choices and their labels."""
    answer = _scalar(row, format.answer, place, "task.format.answer")
    if format.choices is None:
        return 0, (answer,), (answer,)
    if isinstance(format.choices, list):
        choices = labels = tuple(choice.strip() for choice in format.choices)
    else:
        choices = _choices(
            _value(row, format.choices, place, "task.format.choices"), f"{place}: column {format.choices!r}"
        )
        labels = tuple(LETTERS[: len(choices)])
    found = [i for i, choice in enumerate(choices) if choice == answer]
    if not found and answer in labels:
        found = [labels.index(answer)]
    if len(found) != 1:
        problem = "stands more than once among" if found else "is not one of"
        raise UserError(
            f"{place}: answer {shorten(answer)} (column {format.answer!r}) {problem} the choices "
            f"{shorten(list(choices))}. " + ("Give its letter." if found else "Correct the row or task.format.choices.")
        )
    return found[0], choices, labels


def _choices(value: Any, place: str) -> tuple[str, ...]:
    """Return the choices of a row: a list, a JSON list, or a text with | between them."""
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = None
        value = parsed if isinstance(parsed, list) else value.split("|")
    if not isinstance(value, list):
        raise UserError(
            f"{place} holds {shorten(value)}. Choices are a list, a JSON list, or a text with | between them."
        )
    _check_choices(value, place)
    if len(value) > len(LETTERS):
        raise UserError(f"{place} holds {len(value)} choices. Give at most {len(LETTERS)}.")
    return tuple(str(choice).strip() for choice in value)


def _check_choices(choices: list[Any], place: str) -> None:
    if not all(isinstance(choice, (str, int, float)) and str(choice).strip() for choice in choices):
        raise UserError(f"{place} holds {shorten(choices)} with an empty choice. Each must be a text.")
    if len(choices) < 2:
        raise UserError(f"{place} holds {shorten(choices)}, which is {len(choices)} choices. Give at least 2.")
