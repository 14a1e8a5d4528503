"""Refuse what has the name of a part of the data and is not read, such as a test set in a format that is not known.

Folders of images or recordings that tables name are no parts, and neither are programs and descriptions.
"""

import mimetypes
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from fedcollm.data.tables import KNOWN, ending_of
from fedcollm.errors import UserError

#: Files of the hub that describe tables, and are none.
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")

#: Endings of programs and descriptions, which may have any name.
_OTHER = (
    *(".py", ".ipynb", ".sh", ".r", ".jl", ".md", ".rst", ".html", ".pdf", ".log", ".yaml", ".yml", ".toml", ".cfg"),
    *(".ini", ".lock", ".pt", ".bin", ".safetensors"),
)

#: Endings of tables that are not read.
_UNKNOWN_TABLES = (
    *(".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".csv", ".tsv", ".tab", ".psv", ".jsonl", ".ndjson", ".feather"),
    *(".parq", ".avro", ".orc", ".dta", ".sav", ".rds", ".sqlite", ".db", ".tfrecord"),
)
_PACKED = (".bz2", ".xz", ".zip", ".7z", ".rar", ".lz4", ".gz", ".zst", ".tar", ".tgz")


def check_all_read(path: Path, found: Mapping[str, Iterable[Path]], names: Collection[str]) -> None:
    """Check that all files and folders of a directory that have the name of a part are read.

    Args:
        path: the directory.
        found: name of a part as it is written to its files.
        names: the names that parts may have, in lower case.

    Raises:
        UserError: one of them is not read, neither itself nor, in a folder of tables, each table in it.
    """
    read = {file for files in found.values() for file in files}
    folders = {file.parent for file in read}
    first = next((file for files in found.values() for file in files), None)
    if first is None:
        return
    for entry in _named(path, names):
        odd = entry
        if entry in folders:
            is_saved = first.suffix == ".arrow"  # in a folder with files that `datasets` keeps for itself
            tables = (file for file in _files(entry) if file not in read and _is_table(file) and not is_saved)
            odd = next(tables, None)
        elif entry in read or (_holds_no_data(entry) if entry.is_dir() else _is_no_data(entry)):
            continue
        if odd is not None:
            raise UserError(_not_read(path, odd, first))


def check_no_file(path: Path, names: Collection[str]) -> None:
    """Check that no file beside folders of images has the name of a part and may be data, such as an archive.

    Args:
        path: the directory of the folders.
        names: the names that parts may have, in lower case.

    Raises:
        UserError: there is such a file.
    """
    odd = next((entry for entry in _named(path, names) if entry.is_file() and not _is_no_data(entry)), None)
    if odd is not None:
        raise UserError(
            f"{path}: {odd.relative_to(path)} would not be read beside the folders of images, though it has the name "
            "of a part of the data. Put its images into a folder of their own, such as test/CLASS/, or move it out of "
            f"{path}."
        )


def _not_read(path: Path, odd: Path, first: Path) -> str:
    advice = (
        "Put the parts side by side in one layout: a file for each part (train.csv, test.csv), or a folder of files "
        "for each (train/0.csv, test/0.csv), with no folders in it"
    )
    if not odd.is_dir() and not ending_of(odd):
        advice = f"Save it in a format that is read ({KNOWN})"
    name = f"{odd.relative_to(path)}{os.sep * odd.is_dir()}"
    return (
        f"{path}: {name} would not be read beside {first.relative_to(path)}, though it seems to be data. {advice}; or "
        f"move it out of {path}."
    )


def _named(path: Path, names: Collection[str]) -> Iterator[Path]:
    """Yield what has the name of a part in a directory and in the folder `data` of it."""
    for folder in (path, path / "data"):
        for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
            if re.split(r"[.]|-\d", entry.name.lower())[0] in names:
                yield entry


def _files(folder: Path) -> Iterator[Path]:
    for place, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith((".", "_")))
        yield from (Path(place, name) for name in sorted(files) if not name.startswith((".", "_")))


def _holds_no_data(folder: Path) -> bool:
    """Return whether a folder has only images or recordings, with what describes each of them, or what is no data."""
    files = [file for file in _files(folder) if not _is_no_data(file, alone=False)]
    has_media = any(map(_is_media, files))
    described = (".json", ".txt", ".xml")
    return not any(_is_table(file) and not (has_media and file.suffix.lower() in described) for file in files) and (
        has_media or not files
    )


def _is_no_data(file: Path, alone: bool = True) -> bool:
    """Return whether a file is a program or a description, or, if it stands alone, an image or a recording."""
    return file.suffix.lower() in _OTHER or not file.exists() or (alone and _is_media(file))


def _is_media(file: Path) -> bool:
    kind = mimetypes.guess_type(file.name)[0] or ""
    return kind.startswith(("image/", "audio/", "video/"))


def _is_table(file: Path) -> bool:
    """Return whether a file is a table, also of a kind that is not read."""
    if file.name in DESCRIPTIONS:
        return False
    if ending_of(file):
        return True
    name = file.name.lower()
    packed = next((ending for ending in _PACKED if name.endswith(ending)), "")
    return name.removesuffix(packed).endswith((*_UNKNOWN_TABLES, ".json"))
