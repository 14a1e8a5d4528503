"""The processes of a server's directory: which ones they are, and how they are ended.

A process is known by its command line, which names the directory, and never by its number alone: the system may have
given that number to another program. One whose number was lost is found by its command line too.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

_CLOCK_SECONDS = 60.0  # by which a clock may have been set back since a service started
#: What stands before the name of nginx's processes, which it writes over their command lines.
_MASTER, _WORKER = "nginx: master process", "nginx: worker process"


def running(directory: Path, name: str) -> bool:
    """Return whether a service of this directory is running."""
    return find(directory, name) is not None


def find(directory: Path, name: str) -> psutil.Process | None:
    """Return the process of a service, or None if it has ended.

    Args:
        directory: the server's directory.
        name: `server`, `superlink` or `nginx`, which is its main process.
    """
    process = _noted(directory, name)
    if process is None and name != "server":
        process = next(iter(_found(lambda other: _belongs(other, directory, name))), None)
    return process


def _noted(directory: Path, name: str) -> psutil.Process | None:
    """Return the process whose number was written when the service started, if it is still this service."""
    file = directory / "state" / f"{name}.pid"
    try:
        number, written = int(file.read_text(encoding="utf-8")), file.stat().st_mtime
        with contextlib.suppress(OSError):
            os.waitpid(number, os.WNOHANG)  # in case it is a child of this process
        process = psutil.Process(number)
        begun = process.create_time()
    except (OSError, ValueError, OverflowError, psutil.Error):
        return None
    return process if begun <= written + _CLOCK_SECONDS and _belongs(process, directory, name) else None


def _belongs(process: psutil.Process, directory: Path, name: str) -> bool:
    """Return whether a process lives and is this service of this directory, by its command line."""
    try:
        words = process.cmdline()
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        place, line = str(directory.resolve()), " ".join(words)
        if name == "superlink":
            return f"--database {place}/state/superlink.db" in line
        if name == "nginx":
            return line.startswith(_MASTER) and f"-p {place}/ " in f"{line} "
        ours = "deploy" in words and "server" in words and _names(process, words, directory)
        return process.pid == os.getpid() or ours
    except (OSError, psutil.Error):
        return False


def _names(process: psutil.Process, words: Iterable[str], directory: Path) -> bool:
    """Return whether a word of a process's command line is this directory."""
    here = Path(process.cwd())
    return any((here / word).resolve() == directory.resolve() for word in words if "\0" not in word)


def _found(belongs: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """Return the processes of this user that belong to a directory."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if _own(process) and belongs(process):
                found.append(process)
    return found


def _own(process: psutil.Process) -> bool:
    return os.name != "posix" or process.uids().effective == os.geteuid()


def orphans(directory: Path) -> list[psutil.Process]:
    """Return nginx's workers in this directory whose main process has died. They keep the port and the old keys."""
    place = str(directory.resolve())

    def left(process: psutil.Process) -> bool:
        if not " ".join(process.cmdline()).startswith(_WORKER) or process.cwd() != place:
            return False
        parent = process.parent()
        return parent is None or not _belongs(parent, directory, "nginx")

    return _found(left)


def workers(directory: Path) -> set[int]:
    """Return the numbers of the workers of this directory's nginx; none if it does not run."""
    process = find(directory, "nginx")
    with contextlib.suppress(psutil.Error):
        return {child.pid for child in process.children()} if process else set()
    return set()


def stop(directory: Path, name: str, seconds: float = 5.0) -> bool:
    """Stop a service, and kill it if it does not end. Return whether it was running.

    Args:
        directory: the server's directory.
        name: name of the service.
        seconds: how long to wait after each of the two signals.
    """
    stopped = False
    while (process := find(directory, name)) is not None and end(process, seconds):
        stopped = True
    if name == "nginx":
        for process in orphans(directory):
            stopped = end(process, seconds) or stopped
    if stopped and name != "server":  # which removes its own
        (directory / "state" / f"{name}.pid").unlink(missing_ok=True)
    return stopped


def end(process: psutil.Process, seconds: float) -> bool:
    """Ask a process to end, and kill it if it does not. Return whether it has ended.

    Args:
        process: the process.
        seconds: how long to wait after each of the two signals.
    """
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if gone(process):
            return True
        with contextlib.suppress(psutil.Error):  # psutil refuses to signal a number that was given away meanwhile
            process.send_signal(sign)
        deadline = time.monotonic() + (seconds if sign == signal.SIGTERM else max(seconds, 5.0))
        while not gone(process) and time.monotonic() < deadline:
            time.sleep(0.05)
    return gone(process)


def gone(process: psutil.Process) -> bool:
    """Return whether a process has ended, be it that nobody has asked how."""
    with contextlib.suppress(OSError):
        os.waitpid(process.pid, os.WNOHANG)  # in case it is a child of this process
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True
