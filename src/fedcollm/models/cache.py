"""The cache of converted, cut and healed models: `FEDCOLLM_CACHE`, by default `~/.cache/fedcollm`.

The name of an entry stands for all that it is made of, and an entry is either complete or absent.
"""

import functools
import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from fedcollm.errors import UserError
from fedcollm.storage import cache_directory, one_at_a_time, writing

#: What is said of a cache that can't be written.
CACHE = (
    "the cache of models, {directory}, can't be written: {error}. Free some space, or set the environment variable "
    "FEDCOLLM_CACHE to another directory."
)

#: Endings of the files of a model's directory that decide what the model is: weights, configurations, tokenizers, code.
_SUFFIXES = (".safetensors", ".bin", ".gguf", ".json", ".txt", ".model", ".tiktoken", ".jinja", ".py")


def is_entry(place: Path) -> bool:
    """Return whether a directory is an entry of the cache."""
    try:
        return place.is_dir() and place.resolve().parent == cache_directory().resolve()
    except UserError:  # there is no cache
        return False


def entry_stem(name: str, place: Path, revision: str | None = None) -> str:
    """Return a readable key for what is made of a model: its name, and a digest of its files' contents.

    A place that is itself an entry of the cache keeps its name.

    Args:
        name: readable name of the model.
        place: a file, a directory, or a hub id.
        revision: of a hub id, the commit that it stands for now.
    """
    if is_entry(place):
        return place.name
    if place.is_file():
        identity = [_content(place)]
    elif place.is_dir():
        files = sorted(file for file in place.iterdir() if file.suffix in _SUFFIXES and file.is_file())
        identity = [f"{file.name}={_content(file)}" for file in files]
    else:
        identity = [f"{place.as_posix()}@{revision}"]
    return f"{name}-{hashlib.sha256(' '.join(identity).encode()).hexdigest()[:32]}"


def _content(file: Path) -> str:
    state = file.stat()
    return _digest(str(file.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@functools.lru_cache(maxsize=1024)
def _digest(file: str, size: int, modified: int, changed: int) -> str:
    """Return the digest of a file's content, once per process for each state of the file."""
    with Path(file).open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()


def cached(key: str, make: Callable[[Path], None]) -> Path:
    """Return a cache entry, and make it if it does not exist. One process makes it while the others wait.

    It is made in a temporary directory and renamed into place, so that an entry is either complete or absent.

    Args:
        key: the name of the entry.
        make: writes the entry into an existing, empty directory.

    Raises:
        UserError: the cache can't be written, or something else has the entry's name.
    """
    target = cache_directory() / key
    if target.is_dir():
        return target
    if target.exists():
        raise UserError(f"{target} is no directory, so it is no model of the cache. Delete it, and it is made again.")
    with one_at_a_time(target, CACHE):
        if not target.is_dir():
            with writing(cache_directory(), CACHE):
                _remove_leftovers(target)
                _fill(target, make)
    return target


def _fill(target: Path, make: Callable[[Path], None]) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        make(temporary)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(target: Path) -> None:
    """Remove what killed processes left of an entry. The caller must hold its lock."""
    left = re.compile(rf"\.{re.escape(target.name)}-[a-z0-9_]{{8}}")  # as mkdtemp names it; other entries' names differ
    for place in target.parent.iterdir():
        if left.fullmatch(place.name):
            shutil.rmtree(place, ignore_errors=True)
