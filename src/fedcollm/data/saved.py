"""Find the tables in what `datasets.save_to_disk` writes: a data set, or several splits of one."""

import json
from pathlib import Path
from typing import Any, cast

from fedcollm.errors import UserError

_SPLITS = "dataset_dict.json"
_STATE = "state.json"


def saved_files(directory: Path) -> dict[str, list[Path]]:
    """Return the Arrow files of each split by its name; those of a single data set as `train`.

    Args:
        directory: any directory; there are none if `datasets` did not write it.

    Raises:
        UserError: a file is missing or damaged.
    """
    if (directory / _SPLITS).is_file():
        names = _read(directory / _SPLITS).get("splits")
        known = cast("list[Any]", names) if isinstance(names, list) else []
        return {str(name): _arrow_files(directory / _plain(str(name), directory)) for name in known}
    if (directory / _STATE).is_file():
        return {"train": _arrow_files(directory)}
    return {}


def _arrow_files(directory: Path) -> list[Path]:
    state = _read(directory / _STATE)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UserError(f"{directory}: the data set is saved with a selection of its rows. Save it with datasets >= 2.")
    listed = state.get("_data_files")
    entries = cast("list[Any]", listed) if isinstance(listed, list) else []
    names = [cast("dict[str, Any]", entry).get("filename") for entry in entries if isinstance(entry, dict)]
    files = [directory / _plain(str(name), directory) for name in names]
    if missing := next((file for file in files if not file.is_file()), None):
        raise UserError(f"{missing}: no such file, but {_STATE} beside it names it. Save or download the data again.")
    if not files:
        raise UserError(f"{directory / _STATE} names no data files. Save or download the data again.")
    return files


def _plain(name: str, directory: Path) -> str:
    """Return a name that leads to nowhere else."""
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise UserError(f"{directory}: {name!r} is no name of a file in it. Save or download the data again.")
    return name


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{file}: no such file. Save or download the data again.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} can't be read ({error}). Save or download the data again.") from None
    return cast("dict[str, Any]", content) if isinstance(content, dict) else {}
