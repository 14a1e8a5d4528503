"""The two programs that the server needs: a Flower SuperLink, and nginx in front of it.

The SuperLink can be reached from this machine only. Clients connect to nginx.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedcollm.deploy import directories as names
from fedcollm.deploy.directories import Deployment
from fedcollm.deploy.front import stream_module, write_front
from fedcollm.deploy.processes import end, find, orphans, running, stop, workers
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
_START_SECONDS = 300.0
_ANSWER_SECONDS = 60.0  # that a SuperLink which runs already may take until it answers; it is restarted after that
_RELOAD_SECONDS = 30.0  # until nginx has workers that have read the change
_END_SECONDS = 10.0


def superlink(directory: Path, deployment: Deployment) -> "SuperLink":
    """Return the deployment's SuperLink, whether it is running or not."""
    from fedcollm.transports.flower.superlink import SuperLink

    secret = (directory / names.SECRET).read_bytes()
    return SuperLink(f"127.0.0.1:{deployment.superlink_port}", directory / names.CA, secret)


def start_superlink(directory: Path, deployment: Deployment) -> "SuperLink":
    """Start the SuperLink unless it is running already, and wait until it answers. Its database outlives it.

    One that runs and does not answer is ended first: two of them must never work on one database.

    Raises:
        UserError: the SuperLink is not installed, does not start, or can't be ended.
    """
    link = superlink(directory, deployment)
    if _answers(directory, link):
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


def _answers(directory: Path, link: "SuperLink") -> bool:
    """Return whether a SuperLink runs that answers; end one that does not.

    Raises:
        UserError: it can't be ended.
    """
    deadline = time.monotonic() + _ANSWER_SECONDS
    while running(directory, "superlink"):
        if link.is_up():
            return True
        if time.monotonic() > deadline:
            say("the SuperLink runs and does not answer; it is restarted")
            stop(directory, "superlink", _END_SECONDS)
            if (process := find(directory, "superlink")) is not None:
                raise UserError(f"the SuperLink, process {process.pid}, does not answer and can't be ended. End it.")
            return False
        time.sleep(0.1)
    return False


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
    """Start nginx unless it is running already. Workers that one which was killed has left keep the port: end them.

    Raises:
        UserError: nginx is not installed, or does not start.
    """
    if running(directory, "nginx"):
        return
    for process in orphans(directory):
        say(f"ending a worker, process {process.pid}, that an nginx which was killed has left")
        end(process, _END_SECONDS)
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


def reload_proxy(directory: Path, deployment: Deployment) -> None:
    """Let nginx, if it runs, read its certificate and its list of admitted keys again; no connection is cut.

    If its main process was killed, so that only workers are left, which can't read anything again, nginx is restarted.

    Raises:
        UserError: nginx has not taken the change, and goes on with what it had.
    """
    program = shutil.which("nginx")
    if program is None:
        return
    if not running(directory, "nginx"):
        if orphans(directory):
            start_proxy(directory, deployment)
        return
    before, result = workers(directory), _run_nginx(program, directory, "-s", "reload")
    deadline = time.monotonic() + _RELOAD_SECONDS
    while not result.returncode and not workers(directory) - before:
        if time.monotonic() > deadline:
            raise UserError(_unchanged(directory, f"it has no new worker after {_RELOAD_SECONDS:g} s."))
        time.sleep(0.02)
    if result.returncode:
        raise UserError(_unchanged(directory, result.stderr.strip()[-400:]))


def _unchanged(directory: Path, why: str) -> str:
    return (
        f"nginx did not take the change, and goes on with what it had: {why} See {directory}/nginx.conf and "
        f"{directory}/logs/nginx-error.log. The change is saved: mend nginx and repeat the command, or restart it all "
        f"with fedcollm deploy stop {directory}, then server."
    )


def _run_nginx(program: str, directory: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Run nginx in the server's directory, to which its socket is relative."""
    directives = stream_module(program) or ""
    if os.geteuid() == 0:
        directives += "user root;"  # otherwise, its workers could not write to this directory
    command = [program, "-p", f"{directory.resolve()}/", "-c", "nginx.conf", "-e", "logs/nginx-error.log"]
    command += (["-g", directives] if directives else []) + list(options)
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=_START_SECONDS)
