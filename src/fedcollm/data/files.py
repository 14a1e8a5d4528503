"""Read the user's own examples from files, strictly: every error names the file and the line or row."""

import csv
import json
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from fedcollm.config import FormatConfig
from fedcollm.data.partition import check_classes
from fedcollm.data.pool import Pool
from fedcollm.errors import UserError
from fedcollm.modalities.base import Example
from fedcollm.modalities.jsonl import read_jsonl, shorten
from fedcollm.modalities.plain_text import check_text
from fedcollm.modalities.text.examples import TextExample, listed_choices

JSONL = (".jsonl", ".jsonl.gz")
SUFFIXES = (*JSONL, ".json", ".csv", ".parquet")
LETTERS = string.ascii_uppercase


class _Field(NamedTuple):
    """A piece of a prompt template: literal text and, unless `column` is empty, the column that follows it.

    The conversion (`r`, `s`, `a` or None) and the format specification are those of Python's format strings.
    """

    text: str
    column: str
    conversion: Literal["r", "s", "a"] | None
    spec: str


def find_part(directory: Path, part: str, suffixes: Sequence[str] = SUFFIXES) -> Path | None:
    """Return the file of a part of the data, or None if there is none.

    Args:
        directory: the directory to search.
        part: name of the file without its suffix, such as `train`.
        suffixes: the suffixes that the file may have.

    Raises:
        UserError: there are several such files.
    """
    found = [path for suffix in suffixes if (path := directory / f"{part}{suffix}").is_file()]
    if len(found) > 1:
        raise UserError(f"{directory}: there are both {found[0].name} and {found[1].name}. Keep only one of them.")
    return found[0] if found else None


def check_ids(examples: Sequence[Example], places: Sequence[str]) -> None:
    """Check that the ids of examples are distinct.

    Args:
        examples: the examples, in the order of their file.
        places: file and line of each example, for the message.

    Raises:
        UserError: two examples have the same id.
    """
    first: dict[str, str] = {}
    for example, place in zip(examples, places, strict=True):
        if example.id in first:
            raise UserError(
                f"{place}: id {example.id!r} is already used in {first[example.id]}. Give each row its own id."
            )
        first[example.id] = place


def load_custom(path: Path, format: FormatConfig, several_classes: bool = True) -> Pool:
    """Return the examples in the user's own JSONL, CSV or Parquet files.

    Args:
        path: a single file, or a directory with a `train` file and possibly others. Without a `test` or `dev` file, the
            test set is cut from the training data; without a `public` file, D_a is too. In an `unlabelled` file, which
            becomes the unlabelled part of D_a, answers may be empty, and the column of the answer may be missing.
        format: which columns are the prompt, the choices and the answer.
        several_classes: whether to refuse training data with a single answer. The data of one client may have one.

    Raises:
        UserError: a file, a row or the format is invalid.
    """
    fields = _template(format.prompt or "")
    if isinstance(format.choices, list):
        _check_choices(format.choices, "task.format.choices")
        if len({choice.strip() for choice in format.choices}) < len(format.choices):
            raise UserError(f"task.format.choices lists a choice twice: {shorten(format.choices)}. List each once.")
    if not path.exists():
        raise UserError(f"task.path: {path} does not exist. Give a file or a directory of {', '.join(SUFFIXES)} files.")
    train_path = find_part(path, "train") if path.is_dir() else path
    if train_path is None:
        raise UserError(
            f"task.path: {path} has no train file. Name the training file one of "
            f"{', '.join('train' + suffix for suffix in SUFFIXES)}."
        )
    train = _load(train_path, format, fields)
    if format.choices is not None and several_classes:
        check_classes(train, str(train_path))
    found = {part: find_part(path, part) if path.is_dir() else None for part in ("test", "dev", "public", "unlabelled")}
    if found["unlabelled"] and format.choices is None:
        raise UserError(
            f"{found['unlabelled']}: without task.format.choices, an example without an answer has nothing to distill. "
            "Give the choices, or remove the file."
        )
    others = {
        part: _load(file, format, fields, with_answers=part != "unlabelled") if file else None
        for part, file in (("test", found["test"] or found["dev"]), *list(found.items())[2:])
    }
    return Pool(train, **others)


def _load(path: Path, format: FormatConfig, fields: list[_Field], with_answers: bool = True) -> list[TextExample]:
    examples: list[TextExample] = []
    places: list[str] = []
    for position, (place, row) in enumerate(file_rows(path), start=1):
        answer, choices, labels = (_answer if with_answers else _no_answer)(row, format, place)
        examples.append(
            TextExample(
                id=cell_text(row, "id", place, "id") if "id" in row else str(position),
                prompt=_prompt(row, fields, place),
                choices=choices,
                answer=answer,
                labels=labels,
                group=None if format.group is None else cell_text(row, format.group, place, "task.format.group"),
                own_choices=_own_choices(format),
            )
        )
        places.append(place)
    if not examples:
        raise UserError(f"{path} has no rows. Add some, or set task.path to another file.")
    check_ids(examples, places)
    return examples


def file_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row of a file after its place (file and line or row), for messages.

    Raises:
        UserError: the file can't be read, or a line is invalid.
    """
    if path.name.endswith((*JSONL, ".json")):
        yield from ((f"{path}, line {number}", row) for number, row in read_jsonl(path))
    elif path.suffix == ".csv":
        yield from _csv_rows(path)
    elif path.suffix == ".parquet":
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(_parquet_rows(path), start=1))
    else:
        raise UserError(f"task.path: {path} has an unknown suffix. Known suffixes: {', '.join(SUFFIXES)}.")


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
                        "Put quotes around text that contains commas."
                    )
                elif fields:  # a blank line has none
                    yield f"{path}, line {line}", dict(zip(columns, fields, strict=True))
                line = reader.line_num + 1
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}, line {line}: can't be read as CSV in UTF-8 ({error}). Correct this line.") from None


def _check_header(columns: list[str], path: Path) -> None:
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise UserError(f"{path}, line 1: the header has column {twice[0]!r} twice. Give each column its own name.")


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]
    from pyarrow import parquet  # pyright: ignore[reportMissingTypeStubs]

    reader: Any = parquet.ParquetFile
    arrow_error: type[Exception] = cast("Any", pa).ArrowException
    try:
        return reader(path).read().to_pylist()
    except (OSError, ValueError, arrow_error) as error:
        raise UserError(f"{path}: can't be read as Parquet ({error}). Check that the file is complete.") from None


def _template(prompt: str) -> list[_Field]:
    """Return the pieces of a prompt template. A column may have any name."""
    try:
        fields = list(_fields(prompt))
    except ValueError as error:
        raise UserError(
            f"task.format.prompt: {prompt!r} is not a valid template ({error}). Write a column as {{column}}."
        ) from None
    if not any(field.column for field in fields):
        raise UserError(f"task.format.prompt: {prompt!r} contains no column. Write a column as {{column}}.")
    return fields


def _fields(prompt: str) -> Iterator[_Field]:
    for text, column, spec, conversion in string.Formatter().parse(prompt):
        if column == "":
            raise ValueError("{} without a name")
        if conversion not in (None, "r", "s", "a"):
            raise ValueError(f"unknown conversion !{conversion}")
        yield _Field(text, column or "", conversion, spec or "")


def _prompt(row: dict[str, Any], fields: list[_Field], place: str) -> str:
    parts: list[str] = []
    for text, column, conversion, spec in fields:
        parts.append(text)
        if column:
            value = cell_value(row, column, place, "task.format.prompt")
            if isinstance(value, (list, dict)):
                raise UserError(f"{place}: column {column!r} holds {shorten(value)}. A prompt needs text or a number.")
            try:
                parts.append(format(string.Formatter().convert_field(value, conversion), spec))
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{place}: task.format.prompt can't format {shorten(value)} in column {column!r} ({error}). "
                    "Correct the row or the template."
                ) from None
    return "".join(parts)


def cell_value(row: dict[str, Any], column: str, place: str, key: str) -> Any:
    """Return what a row holds in a column.

    Args:
        row: column to value.
        column: name of the column.
        place: file and row, for the message.
        key: key of the configuration that names the column, for the message.

    Raises:
        UserError: there is no such column, or in this row it is empty, or holds text that `check_text` refuses.
    """
    if column not in row:
        raise UserError(f"{place}: there is no column {column!r} ({key}). The columns are {', '.join(map(str, row))}.")
    value = row[column]
    check_text(value, f"{place}: column {column!r} ({key})")
    if value is None or value != value or (isinstance(value, str) and not value.strip()):  # NaN differs from itself
        raise UserError(f"{place}: column {column!r} ({key}) is empty. Fill it in, or remove the row.")
    return value


def cell_text(row: dict[str, Any], column: str, place: str, key: str) -> str:
    """Return what a row holds in a column as text without space around it; see `cell_value`.

    Raises:
        UserError: there is no such column, or it holds nothing, a list or an object in this row.
    """
    value = cell_value(row, column, place, key)
    if isinstance(value, (list, dict)):
        raise UserError(f"{place}: column {column!r} ({key}) holds {shorten(value)}. It needs text or a number.")
    return str(value).strip()


def _no_answer(row: dict[str, Any], format: FormatConfig, place: str) -> tuple[None, tuple[str, ...], tuple[str, ...]]:
    """Return the choices of an unlabelled row and their labels."""
    return None, *_labelled_choices(row, format, place)


def _labelled_choices(row: dict[str, Any], format: FormatConfig, place: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the choices of a row and their labels: themselves if all rows share them, or else letters."""
    if isinstance(format.choices, list):
        choices = tuple(choice.strip() for choice in format.choices)
        return choices, choices
    column = str(format.choices)
    choices = _choices(cell_value(row, column, place, "task.format.choices"), f"{place}: column {column!r}")
    return choices, tuple(LETTERS[: len(choices)])


def _own_choices(format: FormatConfig) -> bool:
    """Return whether choices are an example's own: from a column, or letters whose texts the template lists."""
    if isinstance(format.choices, list):
        return listed_choices(format.prompt or "", format.choices) is not None
    return format.choices is not None


def _answer(row: dict[str, Any], format: FormatConfig, place: str) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """Return the index of the right choice, the choices and their labels."""
    answer = cell_text(row, str(format.answer), place, "task.format.answer")
    if format.choices is None:
        return 0, (answer,), (answer,)
    choices, labels = _labelled_choices(row, format, place)
    found = [i for i, choice in enumerate(choices) if choice == answer]
    if not found and answer in labels:
        found = [labels.index(answer)]
    if len(found) != 1:
        problem = "appears more than once among" if found else "is not one of"
        raise UserError(
            f"{place}: answer {shorten(answer)} (column {format.answer!r}) {problem} the choices "
            f"{shorten(list(choices))}. "
            + ("Write its letter instead." if found else "Correct the row or task.format.choices.")
        )
    return found[0], choices, labels


def _choices(value: Any, place: str) -> tuple[str, ...]:
    """Return the choices of a row, given as a list, as a JSON list, or as text with | between the choices."""
    if isinstance(value, str):
        value = _split(value)
    if not isinstance(value, list):
        raise UserError(
            f"{place} holds {shorten(value)}. Write the choices as a list, as a JSON list, or as text with | between "
            "them."
        )
    choices = cast("list[Any]", value)
    _check_choices(choices, place)
    if len(choices) > len(LETTERS):
        raise UserError(f"{place} holds {len(choices)} choices. Give at most {len(LETTERS)}.")
    return tuple(str(choice).strip() for choice in choices)


def _split(text: str) -> list[Any]:
    """Return the choices in a text, which is a JSON list or has | between them."""
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    return cast("list[Any]", parsed) if isinstance(parsed, list) else text.split("|")


def _check_choices(choices: list[Any], place: str) -> None:
    check_text(choices, place)
    if not all(isinstance(choice, (str, int, float)) and str(choice).strip() for choice in choices):
        raise UserError(f"{place} holds {shorten(choices)}. Each choice must be text that is not empty.")
    if len(choices) < 2:
        raise UserError(f"{place} holds {shorten(choices)}. Give at least 2 choices.")
