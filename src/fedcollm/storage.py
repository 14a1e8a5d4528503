"""Atomic file writes, locks between processes, and the cache, with the same behavior on every platform.

What is written here may hold private data, and its directory may be on a machine that several people use. So only the
owner can read it, whatever the umask is, and no symbolic link is followed where something is written. Whoever wants to
share a run changes its permissions afterwards, for example with `chmod -R go+rX runs/icd10`.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from glob import escape
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from fedcollm.errors import UserError

#: Permissions of a file that only its owner can read, and of a directory that only its owner can enter.
PRIVATE, PRIVATE_DIRECTORY = 0o600, 0o700

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows lacks it

#: How long to try to take a lock: long enough for a second attempt, since the first one may only remove the lock that
#: a killed process left behind.
_LOCK_SECONDS = 0.2
#: How long to wait for readers of a file that is to be replaced: Windows refuses to replace a file that is open.
_READERS_SECONDS = 2.0 if os.name == "nt" else 0.0


#: What is said of an output directory that can't be written.
OUTPUT = (
    "output directory {directory} can't be written: {error}. Free some space or choose another --out. Everything saved "
    "earlier is intact, and --resume continues from it."
)

#: The same where room would not help: it is no directory, or nobody may write there.
_UNUSABLE = (
    "output directory {directory} can't be written: {error}. Choose another --out, or change who may write there."
)

#: Errors of the operating system that more room would mend.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextlib.contextmanager
def writing(directory: Path, message: str = OUTPUT) -> Generator[None, None, None]:
    """Turn an operating system error inside the `with` block into a message for the user.

    Args:
        directory: the directory that the block writes to.
        message: what to say, with `{directory}` and `{error}`.

    Raises:
        UserError: the block could not write.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if message is OUTPUT and isinstance(error, OSError) and error.errno not in (None, *_NO_ROOM):
            message = _UNUSABLE
        raise UserError(message.format(directory=directory, error=error)) from error


def check_place(directory: Path) -> None:
    """Refuse an output directory that can't be made, before anything is loaded.

    Raises:
        UserError: it is a file or below one, or its name is too long, or nobody may write there.
    """
    with writing(directory):
        there = next((place for place in (directory, *directory.parents) if _stands(place)), Path())
        if not there.is_dir():
            what = "is a file" if there == directory else f"can't be made, because {there} is a file"
            raise UserError(f"output directory {directory} {what}. Choose another --out.")
        if not os.access(there, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))


def _stands(place: Path) -> bool:
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextlib.contextmanager
def replacing(path: Path, mode: int = PRIVATE) -> Generator[Path, None, None]:
    """Replace a file atomically with one that the `with` block writes.

    At any moment, `path` is either the complete old file or the complete new one. If the block fails, the old file
    stays.

    Args:
        path: the file to create or replace. If it is a symbolic link, the link is replaced.
        mode: its permissions, whatever the umask is. Nobody else may read it while it is written.

    Yields:
        The temporary path to write to, which has a random name and is in the same directory as `path`.

    Raises:
        OSError: the file system refuses the write or is full.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, PRIVATE))
        yield temporary
        temporary.chmod(mode)
        with temporary.open("r+b") as file:  # Windows flushes only files that are open for writing
            os.fsync(file.fileno())
        _replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _replace(temporary: Path, path: Path) -> None:
    deadline = time.monotonic() + _READERS_SECONDS
    while True:
        try:
            os.replace(temporary, path)  # `Path.rename` does not replace on Windows
            return
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.01)


def write_atomically(path: Path, text: str, mode: int = PRIVATE) -> None:
    r"""Write a text file atomically, with the same bytes on every platform.

    Args:
        path: the file to create or replace.
        text: its complete content, written as UTF-8 with `\n` line endings.
        mode: its permissions, whatever the umask is.

    Raises:
        OSError: the file system refuses the write or is full.
    """
    with replacing(path, mode) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextlib.contextmanager
def replacing_directory(directory: Path) -> Generator[Path, None, None]:
    """Replace a directory with one that the `with` block fills. If the block fails, the old one stays.

    Args:
        directory: the directory to create or replace, which no other process writes to. If it is a symbolic link, the
            link is replaced.

    Yields:
        The temporary directory to write to, which has a random name and which only its owner can enter.

    Raises:
        OSError: the file system refuses the write or is full.
    """
    for leftover in directory.parent.glob(
        f".{escape(directory.name)}-????????"
    ):  # of a killed process, as mkdtemp names it
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield temporary
        for place in temporary.rglob("*"):
            if not place.is_symlink():
                place.chmod(PRIVATE_DIRECTORY if place.is_dir() else PRIVATE)
        if directory.is_symlink():
            directory.unlink()
        shutil.rmtree(directory, ignore_errors=True)
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_directory(directory: Path) -> None:
    """Make a directory that only its owner can enter, with those above it, unless it exists.

    Raises:
        OSError: it can't be made.
    """
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)


def append_to(file: Path) -> int:
    """Return a descriptor that appends to a file, which only its owner can read.

    Raises:
        OSError: the file can't be opened, or is a symbolic link.
    """
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _NO_LINK, PRIVATE)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of `path` that killed processes left behind. The caller must hold the lock."""
    for leftover in path.parent.glob(f".{escape(path.name)}-*"):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(directory: Path) -> Generator[None, None, None]:
    """Lock a run directory, so that no other process writes to it inside the `with` block.

    Args:
        directory: the directory to lock; it is created if it does not exist.

    Raises:
        UserError: another process holds the lock, or the directory can't be created.
    """
    check_place(directory)
    with writing(directory):
        make_directory(directory)
        lock = _lock(directory / ".lock")
        try:
            lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout as error:
            raise UserError(
                f"{directory} is in use by another process. Stop it, wait until it is done, or choose another one."
            ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def one_at_a_time(file: Path, message: str = OUTPUT) -> Generator[None, None, None]:
    """Let only one process at a time enter the `with` block that creates a file; the others wait for their turn.

    Args:
        file: the file that the block creates unless another process has created it meanwhile. Its directory is
            created if it does not exist.
        message: what to say if that directory can't be written; see `writing`.

    Raises:
        UserError: the directory can't be written.
    """
    with writing(file.parent, message):
        make_directory(file.parent)
        lock = _lock(file.with_name(f".{file.name}.lock"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock(file: Path) -> FileLock:
    """Return a lock that any thread may release, since a generator can finish in another thread than it started in."""
    return FileLock(file, mode=PRIVATE, thread_local=False)


def cache_directory() -> Path:
    """Return the absolute path of what is made once per machine, such as converted models (`FEDCOLLM_CACHE`).

    Raises:
        UserError: the variable is not set, and the user has no home directory.
    """
    return user_directory(
        "FEDCOLLM_CACHE",
        ".cache",
        "this user has no home directory, in which the cache would be. Set the environment variable "
        "FEDCOLLM_CACHE to a directory that can be written, with some gigabytes free.",
    )


def user_directory(variable: str, parent: str, homeless: str) -> Path:
    """Return a directory of this user: what an environment variable says, or `fedcollm` in a directory of the home.

    Args:
        variable: name of the environment variable.
        parent: the directory in the home, such as `.cache`.
        homeless: what to say if the variable is not set, and the user has no home directory.

    Raises:
        UserError: that.
    """
    if given := os.environ.get(variable):
        return Path(os.path.expanduser(given)).absolute()
    try:
        return Path.home() / parent / "fedcollm"
    except RuntimeError as error:
        raise UserError(homeless) from error


def cached_json(name: str, made_of: object, make: Callable[[], Any]) -> Any:
    """Return a JSON value from the cache, and make it if it is missing, damaged, or made of something else.

    The first line of its file is the SHA-256 digest of the rest. Where the cache can't be read or written, the value is
    made each time.

    Args:
        name: start of the file's name.
        made_of: all that the value depends on, as a JSON value.
        make: returns the value. What comes back from the cache went through JSON, so that its tuples are lists.
    """
    key = _sha256(json.dumps(made_of, sort_keys=True))[:16]
    try:
        file = cache_directory() / f"{name}-{key}.json"
    except UserError:  # there is none, and nothing needs it
        return json.loads(json.dumps(make()))
    with contextlib.suppress(OSError, ValueError):
        digest, _, text = file.read_text(encoding="utf-8").partition("\n")
        if digest == _sha256(text):
            return json.loads(text)
    text = json.dumps(make())
    with contextlib.suppress(OSError):
        make_directory(file.parent)
        write_atomically(file, f"{_sha256(text)}\n{text}")
    return json.loads(text)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
