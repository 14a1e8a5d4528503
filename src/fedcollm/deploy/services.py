"""The two programs that the server needs: a Flower SuperLink, and nginx in front of it.

The SuperLink can be reached from this machine only. Clients connect to nginx.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedcollm.deploy import directories as names
from fedcollm.deploy.directories import Deployment
from fedcollm.errors import UserError
from fedcollm.progress import say

if TYPE_CHECKING:
    from fedcollm.transports.flower.superlink import SuperLink

#: With these variables, Flower sends no telemetry, does not look for updates, and installs nothing.
FLOWER_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
_START_SECONDS, _WATCH_SECONDS = 300.0, 1.0


def superlink(directory: Path, deployment: Deployment) -> "SuperLink":
    """Return the deployment's SuperLink, whether it is running or not."""
    from fedcollm.transports.flower.superlink import SuperLink

    secret = (directory / names.SECRET).read_bytes()
    return SuperLink(f"127.0.0.1:{deployment.superlink_port}", directory / names.CA, secret)


def start_superlink(directory: Path, deployment: Deployment) -> "SuperLink":
    """Start the SuperLink unless it is running already, and wait until it answers. Its database outlives it.

    Raises:
        UserError: the SuperLink is not installed, or does not start.
    """
    link = superlink(directory, deployment)
    if running(directory, "superlink") and link.is_up():
        return link
    program = Path(sys.executable).with_name("flower-superlink")
    if not program.exists():
        raise UserError(f"{program} is missing. Install it: pip install 'fedcollm[deploy]'")
    place = directory.resolve()
    files = {name: str(place / name) for name in (names.CERTIFICATE, names.SERVER_KEY, names.CA, names.SECRET)}
    command = [str(program), "--host", "127.0.0.1", "--port", str(deployment.superlink_port)]
    command += ["--ssl-certfile", files[names.CERTIFICATE], "--ssl-keyfile", files[names.SERVER_KEY]]
    command += ["--ssl-ca-certfile", files[names.CA], "--enable-supernode-auth"]
    command += ["--database", str(place / "state" / "superlink.db"), "--disable-runtime-dependency-installation"]
    command += ["--isolation", "process", "--superexec-auth-secret-file", files[names.SECRET]]
    say("starting the SuperLink")
    _spawn(command, FLOWER_ENVIRONMENT | {"FLWR_HOME": str(place / "state" / "flower")}, directory, "superlink")
    deadline = time.monotonic() + _START_SECONDS
    while not link.is_up():
        if not running(directory, "superlink") or time.monotonic() > deadline:
            stop(directory, "superlink")
            raise UserError(
                f"the SuperLink did not start. See {directory / 'logs' / 'superlink.log'}; if port "
                f"{deployment.superlink_port} is in use, change superlink_port in {names.DEPLOYMENT} and nginx.conf."
            )
        time.sleep(0.1)
    return link


def _spawn(command: list[str], environment: Mapping[str, str], directory: Path, name: str) -> None:
    """Start a process that outlives this one.

    Args:
        command: the program's path and its arguments.
        environment: variables to add to this process's environment.
        directory: the server's directory, to which the process's log and its id are written.
        name: name of the service.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(directory / "logs" / f"{name}.log"), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    number = os.posix_spawn(command[0], command, os.environ | environment, file_actions=actions, setsid=True)
    (directory / "state" / f"{name}.pid").write_text(str(number), encoding="utf-8")


def start_proxy(directory: Path, deployment: Deployment) -> None:
    """Start nginx unless it is running already.

    Raises:
        UserError: nginx is not installed, or does not start.
    """
    if running(directory, "nginx"):
        return
    program = shutil.which("nginx")
    if program is None:
        raise UserError("nginx is not installed, and clients must not reach the SuperLink without it. Install nginx.")
    say(f"starting nginx on port {deployment.port}")
    command = [program, "-p", f"{directory.resolve()}/", "-c", "nginx.conf", "-e", "logs/nginx-error.log"]
    if os.geteuid() == 0:
        command += ["-g", "user root;"]  # otherwise, its workers could not write to this directory
    result = subprocess.run(command, capture_output=True, text=True, timeout=_START_SECONDS)
    if result.returncode:
        raise UserError(
            f"nginx did not start: {result.stderr.strip()[-400:]} If port {deployment.port} is in use, change it in "
            f"nginx.conf, in {names.DEPLOYMENT} and in every client's {names.MEMBERSHIP}."
        )


@contextlib.contextmanager
def kept_running(directory: Path, deployment: Deployment) -> Generator["SuperLink", None, None]:
    """Start the SuperLink and nginx, and restart either one that ends within the context. Both outlive the context.

    Yields:
        The SuperLink.

    Raises:
        UserError: one of them can't be started at first.
    """
    link = start_superlink(directory, deployment)
    start_proxy(directory, deployment)
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(_WATCH_SECONDS):
            try:
                if not running(directory, "superlink"):
                    start_superlink(directory, deployment)
                start_proxy(directory, deployment)
            except UserError as error:
                say(f"{error} Trying again.")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield link
    finally:
        stopped.set()
        thread.join()


def running(directory: Path, name: str) -> bool:
    """Return whether a service is running, by the process id that was written when it started."""
    number = _number(directory, name)
    if number is None:
        return False
    with contextlib.suppress(ChildProcessError, OSError):
        os.waitpid(number, os.WNOHANG)  # in case it is a child of this process
    try:
        os.kill(number, 0)
    except OSError:
        return False
    return True


def stop(directory: Path, name: str, seconds: float = 5.0) -> bool:
    """Stop a service, and kill it if it does not end. Return whether it was running.

    Args:
        directory: the server's directory.
        name: name of the service.
        seconds: how long to wait after each of the two signals.
    """
    if not running(directory, name):
        return False
    number = _number(directory, name)
    assert number is not None
    deadline = time.monotonic() + seconds
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(OSError):
            os.kill(number, sign)
        while running(directory, name) and time.monotonic() < deadline:
            time.sleep(0.05)
        deadline += seconds
    (directory / "state" / f"{name}.pid").unlink(missing_ok=True)
    return True


def _number(directory: Path, name: str) -> int | None:
    """Return the process id that was written when a service started, or None without one."""
    try:
        return int((directory / "state" / f"{name}.pid").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
