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

import psutil

from fedcollm.deploy import directories as names
from fedcollm.deploy.directories import Deployment
from fedcollm.deploy.front import stream_module, write_front
from fedcollm.errors import UserError
from fedcollm.progress import say
from fedcollm.storage import append_to, write_atomically, writing

if TYPE_CHECKING:
    from fedcollm.transports.flower.superlink import SuperLink

#: With these variables, Flower sends no telemetry, does not look for updates, and installs nothing.
FLOWER_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
_START_SECONDS, _WATCH_SECONDS = 300.0, 1.0
_CLOCK_SECONDS = 60.0  # by which a clock may have been set back since a service started


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
    parts = (names.SUPERLINK_CERTIFICATE, names.SUPERLINK_KEY, names.CA, names.SECRET)
    files = {name: str(place / name) for name in parts}
    command = [str(program), "--host", "127.0.0.1", "--port", str(deployment.superlink_port)]
    command += ["--ssl-certfile", files[names.SUPERLINK_CERTIFICATE], "--ssl-keyfile", files[names.SUPERLINK_KEY]]
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
    with writing(directory):
        log = append_to(directory / "logs" / f"{name}.log")
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, log, 1),
        (os.POSIX_SPAWN_DUP2, log, 2),
    ]
    try:
        number = os.posix_spawn(command[0], command, os.environ | environment, file_actions=actions, setsid=True)
    finally:
        os.close(log)
    write_atomically(directory / "state" / f"{name}.pid", str(number), mode=0o600)


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
    write_front(directory, program, deployment.port)
    result = _run_nginx(program, directory)
    if result.returncode:
        raise UserError(
            f"nginx did not start: {result.stderr.strip()[-400:]} If port {deployment.port} is in use, change it in "
            f"{names.DEPLOYMENT}, in every client's {names.MEMBERSHIP}, and in nginx.conf if it stands there."
        )


def reload_proxy(directory: Path) -> None:
    """Let nginx, if it runs, read its certificate and its list of admitted keys again; no connection is cut.

    Raises:
        UserError: nginx does not accept them, and goes on with what it had.
    """
    program = shutil.which("nginx")
    if program is None or not running(directory, "nginx"):
        return
    result = _run_nginx(program, directory, "-s", "reload")
    if result.returncode:
        raise UserError(f"nginx did not take the change: {result.stderr.strip()[-400:]} Check {directory}/nginx.conf.")


def _run_nginx(program: str, directory: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Run nginx in the server's directory, to which its socket is relative."""
    directives = stream_module(program) or ""
    if os.geteuid() == 0:
        directives += "user root;"  # otherwise, its workers could not write to this directory
    command = [program, "-p", f"{directory.resolve()}/", "-c", "nginx.conf", "-e", "logs/nginx-error.log"]
    command += (["-g", directives] if directives else []) + list(options)
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=_START_SECONDS)


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
    return _process(directory, name) is not None


def _process(directory: Path, name: str) -> psutil.Process | None:
    """Return the process of a service, or None if it has ended.

    The system may have given its number to another program since. So the process must have been there when the number
    was written, and its command line must be the service's.
    """
    file = directory / "state" / f"{name}.pid"
    try:
        number, written = int(file.read_text(encoding="utf-8")), file.stat().st_mtime
        with contextlib.suppress(OSError):
            os.waitpid(number, os.WNOHANG)  # in case it is a child of this process
        process = psutil.Process(number)
        words, begun = process.cmdline(), process.create_time()
    except (OSError, ValueError, OverflowError, psutil.Error):
        return None
    place, line = str(directory.resolve()), " ".join(words)
    ours = {
        "superlink": f"{place}/state/superlink.db" in words,
        "nginx": "nginx" in line and f"-p {place}/ " in f"{line} ",
        "server": number == os.getpid() or ("deploy" in words and "server" in words and _names(process, directory)),
    }
    return process if ours[name] and begun <= written + _CLOCK_SECONDS else None


def _names(process: psutil.Process, directory: Path) -> bool:
    """Return whether a word of a process's command line is this directory."""
    here = Path(process.cwd())
    return any((here / word).resolve() == directory.resolve() for word in process.cmdline() if "\0" not in word)


def stop(directory: Path, name: str, seconds: float = 5.0) -> bool:
    """Stop a service, and kill it if it does not end. Return whether it was running.

    Args:
        directory: the server's directory.
        name: name of the service.
        seconds: how long to wait after each of the two signals.
    """
    process = _process(directory, name)
    if process is None:
        return False
    deadline = time.monotonic() + seconds
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(psutil.Error):  # psutil refuses to signal a number that was given away meanwhile
            process.send_signal(sign)
        while running(directory, name) and time.monotonic() < deadline:
            time.sleep(0.05)
        deadline += seconds
    (directory / "state" / f"{name}.pid").unlink(missing_ok=True)
    return True
