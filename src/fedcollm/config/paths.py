"""Make the paths in a configuration absolute, so that they mean the same files wherever they are read again.

A relative path in a YAML file is one beside that file or, if nothing is there, one in the working directory. In
`--set` and in Python it is one in the working directory. A leading `~` is the home directory; `$NAME` stays as it is.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fedcollm.config.models import HealingConfig, ModelConfig
from fedcollm.config.run import RunConfig

#: Values that are names, even where a file or a directory is called so.
_NAMES = (ModelConfig().source, HealingConfig().text)


def _always(value: str, bases: Sequence[Path]) -> bool:
    return True


def _written_as_path(value: str, bases: Sequence[Path]) -> bool:
    """Return whether a value can't be a name or a hub id, or is a file or the directory of a model that exists."""
    looks = value.startswith((".", "~", os.sep, "/")) or value.endswith(("/", os.sep, ".gguf")) or os.path.isabs(value)
    return looks or (value not in _NAMES and any(_is_model_or_file(base / value) for base in bases))


def is_path(source: str) -> bool:
    """Return whether the source of a model is written as a path, which no hub id is.

    >>> is_path("/models/slm"), is_path("org/model")
    (True, False)
    """
    return _written_as_path(source, ())


#: Keys of a model's section that hold a path, or may hold one.
_OF_MODELS: Mapping[str, Callable[[str, Sequence[Path]], bool]] = {
    "source": _written_as_path,
    "heal.text": _written_as_path,
    "adapter.start": _always,  # a directory of PEFT, never a hub id
}

#: Keys that hold a path, or may hold one, with a function that says whether their value is one.
PATH_KEYS: Mapping[str, Callable[[str, Sequence[Path]], bool]] = {
    "task.path": _always,
    **{f"{role}.{key}": is_path for role in ("slm", "llm") for key, is_path in _OF_MODELS.items()},
}


def absolute(values: Mapping[str, Any], *bases: Path) -> dict[str, Any]:
    """Return the values of a configuration with absolute paths.

    Args:
        values: nested values; keys may be missing, or have values that no configuration may have.
        bases: directories that a relative path may be relative to. The first in which it exists is taken, or else the
            first one. Without any, paths stay as they are.
    """
    found = dict(values)
    if not bases:
        return found
    for key, is_path in PATH_KEYS.items():
        found = _changed(found, key.split("."), lambda value, is_path=is_path: _placed(value, is_path, bases))
    return found


def _changed(values: Any, keys: Sequence[str], change: Callable[[Any], Any]) -> Any:
    """Return nested values of which one is changed, if it is there."""
    first, *rest = keys
    section = cast("Mapping[str, Any]", values)
    if not isinstance(values, Mapping) or first not in section:
        return section
    return {**section, first: _changed(section[first], rest, change) if rest else change(section[first])}


def _placed(value: Any, is_path: Callable[[str, Sequence[Path]], bool], bases: Sequence[Path]) -> Any:
    """Return the absolute path that a value is; the value itself if it is none."""
    if not isinstance(value, str | Path) or not str(value) or not is_path(str(value), bases):
        return value
    path = Path(os.path.expanduser(value))  # leaves a user that does not exist as it is
    places = [Path.cwd() / base / path for base in bases]
    return type(value)(next((place for place in places if _exists(place)), places[0]))


def _is_model_or_file(path: Path) -> bool:
    return _exists(path / "config.json") or (_exists(path) and path.is_file())


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a null
        return False


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return a configuration that was made in Python with absolute paths, relative ones being in this directory."""
    given = config.model_dump()
    values = absolute(given, Path.cwd())
    return config if values == given else RunConfig.model_validate(values)


def without_places(config: RunConfig) -> RunConfig:
    """Return a configuration for a client of a deployment, which does not tell where the server keeps its own files.

    The client's data is elsewhere, and of the files that only the server reads, their names are left. `slm.source`
    stays: it is a path on every machine.
    """
    values = _changed(config.model_dump(), ("task", "path"), lambda path: None)
    for key in PATH_KEYS.keys() - {"task.path", "slm.source"}:
        values = _changed(values, key.split("."), _name)
    if config.llm.source == config.slm.source:  # which some keys need, such as server.layer_transfer
        values["llm"]["source"] = config.slm.source
    return RunConfig.model_validate(values)


def _name(value: Any) -> Any:
    """Return the last part of a path; what is none, as it is."""
    is_path = isinstance(value, str) and (os.path.isabs(os.path.expanduser(value)) or value.startswith("."))
    return Path(value).name if is_path else value
