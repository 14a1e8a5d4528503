"""The two programs beside the server: a Flower SuperLink on this machine alone, and nginx as the only way in."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from fedcollm.deploy import directories as names
from fedcollm.deploy.directories import Deployment
from fedcollm.errors import UserError
from fedcollm.progress import say
from fedcollm.transports.superlink import SuperLink

#: Flower asks its makers nothing and tells them nothing, and installs nothing.
FLOWER_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
_START_SECONDS = 60.0


def superlink(directory: Path, deployment: Deployment) -> SuperLink:
    """The deployment's SuperLink, running or not."""
    secret = (directory / names.SECRET).read_bytes()
    return SuperLink(f"127.0.0.1:{deployment.superlink_port}", directory / names.CA, secret)


def start_superlink(directory: Path, deployment: Deployment) -> SuperLink:
    """Start it, unless it runs; what it stores survives it.

    Raises:
        UserError: it does not come up.
    """
    link = superlink(directory, deployment)
    if running(directory, "superlink") and link.is_up():
        return link
    program = Path(sys.executable).with_name("flower-superlink")
    if not program.exists():
        raise UserError(f"{program} is missing. Install it: pip install 'fedcollm[deploy]'")
    command = [str(program), "--host", "127.0.0.1", "--port", str(deployment.superlink_port)]
    command += ["--ssl-certfile", names.CERTIFICATE, "--ssl-keyfile", names.SERVER_KEY, "--ssl-ca-certfile", names.CA]
    command += [
        "--enable-supernode-auth",
        "--database",
        "state/superlink.db",
        "--disable-runtime-dependency-installation",
    ]
    command += ["--isolation", "process", "--superexec-auth-secret-file", names.SECRET]
    say("starting the SuperLink")
    with (directory / "logs" / "superlink.log").open("ab") as log:
        environment = os.environ | FLOWER_ENVIRONMENT | {"FLWR_HOME": str((directory / "state" / "flower").resolve())}
        process = subprocess.Popen(
            command, cwd=directory, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    (directory / "state" / "superlink.pid").write_text(str(process.pid))
    deadline = time.monotonic() + _START_SECONDS
    while not link.is_up():
        if process.poll() is not None or time.monotonic() > deadline:
            stop(directory, "superlink")
            raise UserError(
                f"the SuperLink did not start. See {directory / 'logs' / 'superlink.log'}; if port "
                f"{deployment.superlink_port} is in use, change superlink_port in {names.DEPLOYMENT} and nginx.conf."
            )
        time.sleep(0.1)
    return link


def start_proxy(directory: Path, deployment: Deployment) -> None:
    """Start nginx, unless it runs.

    Raises:
        UserError: it is not installed, or does not come up.
    """
    if running(directory, "nginx"):
        return
    program = shutil.which("nginx")
    if program is None:
        raise UserError("nginx is not installed, and clients must not reach the SuperLink without it. Install nginx.")
    say(f"starting nginx on port {deployment.port}")
    command = [program, "-p", f"{directory.resolve()}/", "-c", "nginx.conf", "-e", "logs/nginx-error.log"]
    if os.geteuid() == 0:
        command += ["-g", "user root;"]  # else its workers could not write here
    result = subprocess.run(command, capture_output=True, text=True, timeout=_START_SECONDS)
    if result.returncode:
        raise UserError(
            f"nginx did not start: {result.stderr.strip()[-400:]} If port {deployment.port} is in use, change it in "
            f"nginx.conf and {names.DEPLOYMENT}, and tell the clients."
        )


def running(directory: Path, name: str) -> bool:
    """Whether the process whose number was noted is alive."""
    number = _number(directory, name)
    if number is None:
        return False
    with contextlib.suppress(ChildProcessError, OSError):
        os.waitpid(number, os.WNOHANG)  # if it was our own child
    try:
        os.kill(number, 0)
    except OSError:
        return False
    return True


def stop(directory: Path, name: str, seconds: float = 5.0) -> bool:
    """Stop a process, gently and then not; whether there was one."""
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
    try:
        return int((directory / "state" / f"{name}.pid").read_text())
    except (OSError, ValueError):
        return None
