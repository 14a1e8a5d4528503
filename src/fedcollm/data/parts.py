"""Find the files of each part of the data: training, test, public and unlabelled.

A directory has, in this order of search:

- what `datasets.save_to_disk` writes;
- a table per part with one of the names of `PARTS`, in any case (`train.csv`, `Validation.jsonl.gz`), or its shards
  (`train-00000-of-00002.parquet`);
- the same in a folder `data`, as on the Hugging Face hub;
- a folder per part with any tables in it (`train/0000.parquet`).

The server of a deployment, whose clients have their own data, needs no training data: a public and a test part are
enough there.

A table beside them that belongs to no part is refused, and so is what has the name of a part and is not read, such as a
folder `test` beside `train.csv`: most often it is one that was meant to be held out, and the message costs its owner a
second, while a silently missing test set costs the result.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fedcollm.data.saved import saved_files
from fedcollm.data.tables import ENDINGS, KNOWN, ending_of
from fedcollm.data.unread import DESCRIPTIONS, check_all_read
from fedcollm.errors import UserError

#: Part of the data to the names that its file or folder may have. Validation data is the test set if there is no other.
PARTS: Mapping[str, Sequence[str]] = {
    "train": ("train", "training"),
    "test": ("test", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
    "public": ("public",),
    "unlabelled": ("unlabelled", "unlabeled"),
}

#: What takes the place of training data, for messages.
SERVER_PARTS = "the server of a deployment needs none beside a public and a test part"

_SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d{1,9})-of-(?P<count>\d{1,9})(?:-[0-9a-f]{6,})?")
_PART_OF = {name: part for part, names in PARTS.items() for name in names}

T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """The files of the data.

    Attributes:
        files: part (train, test, public, unlabelled) to its files, in their order.
        notes: what a reader of the results should know of the choice.
    """

    files: Mapping[str, Sequence[Path]]
    notes: list[str] = field(default_factory=list[str])


def find_parts(path: Path) -> Parts:
    """Return the files of each part.

    Args:
        path: a file, which is all training data, or a directory; see the description of this module.

    Raises:
        UserError: there is neither training data nor both a public and a test part, a part has two names, a shard is
            missing, or a table belongs to no part.
    """
    try:
        if path.exists() and not path.is_dir():
            return Parts({"train": [path]})
        found = _found(path)
    except OSError as error:  # such as a directory that may not be searched, or a name that is too long
        raise UserError(f"task.path: {path} can't be read ({error}). Check its permissions.") from None
    files, notes = choose(found, path)
    if lacks_examples(files):
        raise UserError(
            f"task.path: {path} has no train file. {_contents(path)} Name the training file train.jsonl, train.csv or "
            f"the like ({KNOWN}); {SERVER_PARTS}."
        )
    return Parts(files, notes)


def lacks_examples(parts: Collection[str]) -> bool:
    """Return whether parts with these names have no training data, and are not all that a server needs without it.

    >>> lacks_examples(["train"]), lacks_examples(["public", "test"]), lacks_examples(["public"])
    (False, False, True)
    """
    return "train" not in parts and not {"public", "test"} <= set(parts)


def labelled_part(parts: Mapping[str, T]) -> T:
    """Return what is there of the training data, or else of the public data: its answers are the classes.

    >>> labelled_part({"public": 1, "test": 2}), labelled_part({"public": 1, "train": 3})
    (1, 3)
    """
    return parts["train"] if "train" in parts else parts["public"]


def _found(path: Path) -> dict[str, list[Path]]:
    """Return the files of a directory by the names of the parts that they belong to.

    Raises:
        UserError: there is no such directory, a table or a folder of tables in it belongs to no part, or one that
            has the name of a part is not read.
    """
    if not path.exists():
        raise UserError(f"task.path: {path} does not exist. Give a file or a directory of tables: {KNOWN}.")
    if found := saved_files(path) or _tables(path):
        _check_names(path, {name: files[0].parent for name, files in found.items()})
    else:
        found = _tables(path / "data") or _folders(path) or _folders(path / "data")
        if found:
            _check_names(path, {_name(file): file for file in _table_files(path)})
    check_all_read(path, found, _PART_OF)
    return found


def _check_names(path: Path, found: Mapping[str, Path]) -> None:
    """Check that each of several names is that of a part."""
    if odd := next((place for name, place in found.items() if name.lower() not in _PART_OF), None):
        raise UserError(
            f"{odd}: its name is that of no part of the data ({', '.join(_PART_OF)}), so it would not be read. Rename "
            f"it, or move it out of {path}."
        )


def choose(found: Mapping[str, T], where: Path) -> tuple[dict[str, T], list[str]]:
    """Return what is there of each part, and a note if validation data is left over.

    Args:
        found: name to what has that name; names that are those of no part are ignored.
        where: the directory, for messages.

    Raises:
        UserError: a part has two of its names.
    """
    parts: dict[str, T] = {}
    for part, names in PARTS.items():
        there = [name for name in found if name.lower() in names]
        if len(there) > 1:
            raise UserError(
                f"{where}: there are both {there[0]} and {there[1]}, two names for the {part} data. Keep only one of "
                "them."
            )
        if there:
            parts[part] = found[there[0]]
    spare = parts.pop("validation", None)
    if spare is None:
        return parts, []
    if "test" in parts:
        return parts, [f"{where.name}: the validation data is not used, since there is a test set"]
    return parts | {"test": spare}, []


def data_files(path: Path) -> list[Path]:
    """Return all tables that are read; those of the directory itself where its layout is another one."""
    try:
        return [file for files in find_parts(path).files.values() for file in files]
    except UserError:
        return [file for file in _table_files(path) if file.is_file()]


def find_part(directory: Path, part: str, endings: Sequence[str] = ENDINGS) -> Path | None:
    """Return the only file with a name and one of several endings, or None if there is none.

    Args:
        directory: the directory to search.
        part: name of the file without its ending, such as `train`.
        endings: the endings that the file may have.

    Raises:
        UserError: there are several such files.
    """
    found = [path for ending in endings if (path := directory / f"{part}{ending}").is_file()]
    if len(found) > 1:
        raise UserError(f"{directory}: there are both {found[0].name} and {found[1].name}. Keep only one of them.")
    return found[0] if found else None


def _tables(directory: Path) -> dict[str, list[Path]]:
    """Return the tables in a directory by the names of their parts; nothing if none of them has such a name.

    Raises:
        UserError: there are two tables of one name, a shard is missing, or a table belongs to no part.
    """
    named: dict[str, list[Path]] = {}
    for file in _table_files(directory):
        named.setdefault(_name(file), []).append(file)
    if not any(name.lower() in _PART_OF for name in named):
        return {}
    _check_names(directory, {name: files[0] for name, files in named.items()})
    return {name: _whole(files) for name, files in named.items()}


def _folders(directory: Path) -> dict[str, list[Path]]:
    """Return the tables in the folders of a directory, if some of these have the names of parts.

    Raises:
        UserError: a shard is missing, or a folder of tables belongs to no part.
    """
    tables = {folder.name: _table_files(folder) for folder in _entries(directory)}
    found = {name: files for name, files in tables.items() if files}
    if not any(name.lower() in _PART_OF for name in found):
        return {}
    _check_names(directory, {name: directory / name for name in found})
    return {
        name: _whole(files) if any(map(_shard, files)) else [_readable(file) for file in files]
        for name, files in found.items()
    }


def _table_files(directory: Path) -> list[Path]:
    return [file for file in _entries(directory) if ending_of(file) and file.name not in DESCRIPTIONS]


def _whole(files: Sequence[Path]) -> list[Path]:
    """Return the only file of a part, or all its shards in their order.

    Raises:
        UserError: there are two files, or a shard is missing.
    """
    shards = [(file, shard) for file in files if (shard := _shard(file)) is not None]
    if len(shards) < len(files) or not shards:
        if len(files) > 1:
            raise UserError(
                f"{files[0].parent}: there are both {files[0].name} and {files[1].name}. Keep only one of them."
            )
        return [_readable(files[0])]
    counts = {int(shard["count"]) for _, shard in shards}
    if len(counts) > 1 or len({ending_of(file) for file in files}) > 1:
        raise UserError(
            f"{files[0].parent}: {files[0].name} and {files[-1].name} are shards of two data sets. Keep only one."
        )
    by_number = {int(shard["number"]): file for file, shard in shards}
    missing = next((number for number in range(counts.pop()) if number not in by_number), None)
    if missing is not None or len(by_number) < len(shards):
        shard = shards[0][1]
        name = f"{shard['name']}-{str(missing or 0).zfill(len(shard['number']))}-of-{shard['count']}"
        problem = "there is no" if missing is not None else "there are two of some numbers beside"
        raise UserError(f"{files[0].parent}: {problem} {name}{ending_of(files[0])}. Give each shard once.")
    return [_readable(by_number[number]) for number in sorted(by_number)]


def _shard(file: Path) -> re.Match[str] | None:
    return _SHARD.fullmatch(_stem(file))


def _name(file: Path) -> str:
    """Return the name of a part as a file has it: without ending and number of a shard."""
    shard = _shard(file)
    return _stem(file) if shard is None else shard["name"]


def _stem(file: Path) -> str:
    return file.name[: -len(ending_of(file))]


def _readable(file: Path) -> Path:
    if file.is_file():
        return file
    kind = "a directory" if file.is_dir() else "no file that can be read, such as a link that leads nowhere"
    raise UserError(f"{file} is {kind}, but has the name of a table. Give a file, or rename it.")


def _entries(directory: Path) -> Iterator[Path]:
    """Yield what is in a directory and not hidden, by name; nothing if it is not a directory.

    Raises:
        UserError: it can't be listed.
    """
    try:
        entries = sorted(directory.iterdir()) if directory.is_dir() else []
    except OSError as error:
        raise UserError(f"{directory}: can't be listed ({error}). Check that you have permission to read it.") from None
    yield from (entry for entry in entries if not entry.name.startswith((".", "_")))


def _contents(directory: Path) -> str:
    """Return what is in a directory, in words."""
    names = [entry.name + "/" * entry.is_dir() for entry in _entries(directory)]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"It has {', '.join(names[:10])}{more}." if names else "It is empty."
