"""Files that are whole at any moment, and locks between processes; the same on every platform."""

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from fedcollm.errors import UserError

#: Long enough for a second attempt, where the first one only clears away the lock of a process that was killed.
_LOCK_SECONDS = 0.2
#: Windows does not replace a file while another process reads it.
_READERS_SECONDS = 2.0 if os.name == "nt" else 0.0


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turn an error of the operating system while writing into a message for the user.

    Args:
        directory: where the block writes, named in the message.

    Raises:
        UserError: the block failed to write.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"output directory {directory} can't be written: {error}. Free some space or choose another --out; "
            "what was saved before is whole, and --resume goes on from it."
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file by one that the block writes, so that it is always either the old file or the new one.

    The block may open, write and close the temporary file as it likes. If the block fails, nothing is replaced.

    Args:
        path: the file to make or to replace.

    Yields:
        Where to write: a temporary path with a random name beside `path`.

    Raises:
        OSError: the file system does not allow it, or is full.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        yield temporary
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


def write_atomically(path: Path, text: str) -> None:
    r"""Write a text file so that it is always either the old one or the new one, with the same bytes everywhere.

    Args:
        path: the file to make or to replace.
        text: the whole of it, written as UTF-8 with `\n` at line ends.

    Raises:
        OSError: the file system does not allow it, or is full.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def remove_leftovers(path: Path) -> None:
    """Remove temporary files that processes left beside `path` when they were killed. Call it while you hold a lock."""
    for leftover in path.parent.glob(f".{path.name}-*"):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a run directory for this process alone.

    Args:
        directory: made if it is missing.

    Raises:
        UserError: another process writes to it, or it can't be made.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        lock = _lock(directory / ".lock")
        try:
            lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout as error:
            raise UserError(f"{directory} is in use by another run; wait for it or choose another --out.") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def one_at_a_time(file: Path) -> Iterator[None]:
    """Let one process at a time make a file: the others wait, and find it there.

    Args:
        file: to be made in the block, if it is not there by then; its directory is made.

    Raises:
        UserError: the directory can't be written.
    """
    with writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(file.with_name(f".{file.name}.lock"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock(file: Path) -> FileLock:
    """A lock that any thread may release: a generator that holds one can end in another thread than it began in."""
    return FileLock(file, thread_local=False)
