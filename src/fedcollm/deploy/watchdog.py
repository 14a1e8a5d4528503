"""Keep the SuperLink and nginx running while the server runs, and their logs short."""

import contextlib
import contextvars
import shutil
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fedcollm.deploy.directories import Deployment
from fedcollm.deploy.processes import running
from fedcollm.deploy.services import start_proxy, start_superlink
from fedcollm.errors import UserError
from fedcollm.progress import say

if TYPE_CHECKING:
    from fedcollm.transports.flower.superlink import SuperLink

_SECONDS, _LONGEST_SECONDS = 1.0, 60.0  # between two looks, and after services could not be started again and again
_LOGS, _LOG_BYTES = ("superlink.log", "nginx-access.log", "nginx-error.log"), 10 * 2**20


@dataclass
class Watchdog:
    """Restart services that end.

    Attributes:
        directory: the server's directory.
        deployment: its ports.
        trouble: why a service can't be started at the moment; empty if both run.
        pause: seconds until the next look.
    """

    directory: Path
    deployment: Deployment
    trouble: str = ""
    pause: float = field(init=False, default_factory=lambda: _SECONDS)

    def look(self) -> None:
        """Start what has ended. What can't be started is said once, and tried again after twice the time."""
        try:
            if not running(self.directory, "superlink"):
                start_superlink(self.directory, self.deployment)
            start_proxy(self.directory, self.deployment)
            self.trouble, self.pause = "", _SECONDS
        except Exception as error:  # whatever it is, the next look may go well
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.pause = min(2 * self.pause, _LONGEST_SECONDS)
            if reason != self.trouble:
                say(f"{reason} Trying again.")
            self.trouble = reason
        with contextlib.suppress(OSError):
            shorten(self.directory / "logs")


def shorten(logs: Path) -> None:
    """Move the content of each log of a service that has 10 MiB to a file NAME.1, in place of what is there.

    The services append to their logs, so that they go on at the start of the emptied file. What they write between the
    two steps is lost.
    """
    for name in _LOGS:
        file = logs / name
        if file.is_symlink() or not file.is_file() or file.stat().st_size < _LOG_BYTES:
            continue
        old = file.with_name(f"{name}.1")
        old.unlink(missing_ok=True)
        shutil.copyfile(file, old)
        old.chmod(0o600)
        with file.open("r+b") as stream:
            stream.truncate(0)


@contextlib.contextmanager
def kept_running(directory: Path, deployment: Deployment) -> Generator[tuple["SuperLink", Watchdog], None, None]:
    """Start the SuperLink and nginx, and restart either one that ends within the context. Both outlive the context.

    Yields:
        The SuperLink, and what restarts it.

    Raises:
        UserError: one of them can't be started at first.
    """
    link = start_superlink(directory, deployment)
    start_proxy(directory, deployment)
    stopped, watchdog = threading.Event(), Watchdog(directory, deployment)

    def watch() -> None:
        while not stopped.wait(watchdog.pause):
            watchdog.look()

    shown = contextvars.copy_context()  # so that what is said is on the screen too
    thread = threading.Thread(target=shown.run, args=(watch,), daemon=True)
    thread.start()
    try:
        yield link, watchdog
    finally:
        stopped.set()
        thread.join()
