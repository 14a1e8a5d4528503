"""How the SuperLink and nginx are started, without starting them."""

import io
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from rich.console import Console

from fedcollm.deploy import front, processes, services, watchdog
from fedcollm.deploy.directories import Deployment
from fedcollm.deploy.roster import SignedRoster
from fedcollm.errors import UserError
from fedcollm.progress import say, shown
from fedcollm.transports.flower.superlink import SuperLink

NOBODY = 2**31 - 1  # larger than any process number
UNSIGNED = SignedRoster(text="{}", signature="")
DEPLOYMENT = Deployment(
    run="run", host="localhost", port=9555, superlink_port=9556, invited=[], clients={}, roster=UNSIGNED
)


@pytest.fixture
def directory(tmp_path) -> Path:
    for name in ("state", "logs"):
        (tmp_path / name).mkdir()
    (tmp_path / "superexec.key").write_bytes(bytes(32))
    return tmp_path


@pytest.fixture
def started(monkeypatch) -> list[tuple[list[str], dict[str, Any]]]:
    """Commands that were started, each with its options; every program seems to be installed and to come up."""
    commands: list[tuple[list[str], dict[str, Any]]] = []

    def spawn(program, command, environment, **options):
        assert program == command[0]
        commands.append((command, {**options, "env": environment}))
        return NOBODY

    def run(command, **options):
        commands.append((command, options))
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(services.os, "posix_spawn", spawn)
    monkeypatch.setattr(services, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(services.shutil, "which", lambda name: f"/usr/sbin/{name}")
    monkeypatch.setattr(services, "stream_module", lambda program: "load_module /modules/stream.so;")
    monkeypatch.setattr(front, "stream_module", lambda program: "load_module /modules/stream.so;")
    monkeypatch.setattr(SuperLink, "is_up", lambda self: True)
    return commands


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_superlink_listens_on_this_machine_alone(directory, started):
    link = services.start_superlink(directory, DEPLOYMENT)
    ((command, options),) = started
    assert Path(command[0]).name == "flower-superlink"
    assert option(command, "--host") == "127.0.0.1"
    assert option(command, "--port") == "9556"
    assert command.count("--host") == 1
    assert not [word for word in command if "0.0.0.0" in word or word == "--insecure"]
    assert "--enable-supernode-auth" in command
    assert option(command, "--superexec-auth-secret-file") == str(directory / "superexec.key")
    assert [option(command, f"--ssl-{name}") for name in ("ca-certfile", "certfile", "keyfile")] == [
        str(directory / name) for name in ("ca.crt", "superlink.crt", "superlink.key")
    ]
    assert option(command, "--isolation") == "process"
    assert option(command, "--database") == str(directory / "state" / "superlink.db")
    assert options["setsid"] is True
    assert link.address == "127.0.0.1:9556"
    assert (directory / "state" / "superlink.pid").read_text() == str(NOBODY)


def test_superlink_tells_nobody_and_installs_nothing(directory, started):
    services.start_superlink(directory, DEPLOYMENT)
    environment = started[0][1]["env"]
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["FLWR_HOME"] == str(directory / "state" / "flower")


def test_secret_is_no_argument(directory, started):
    (directory / "superexec.key").write_bytes(b"secret" * 5)
    services.start_superlink(directory, DEPLOYMENT)
    assert "secretsecret" not in " ".join(started[0][0])
    assert "secretsecret" not in str(started[0][1]["env"])


def test_superlink_that_ends_at_once_is_named_with_its_log(directory, started, monkeypatch):
    monkeypatch.setattr(SuperLink, "is_up", lambda self: False)
    with pytest.raises(UserError, match=r"SuperLink did not start.*superlink\.log.* 9556"):
        services.start_superlink(directory, DEPLOYMENT)


def test_superlink_that_is_not_installed_is_named(directory, started, monkeypatch, tmp_path):
    monkeypatch.setattr(services.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match=r"flower-superlink .*pip install 'fedcollm\[deploy\]'"):
        services.start_superlink(directory, DEPLOYMENT)
    assert started == []


def test_nginx_is_started_with_the_directorys_configuration(directory, started):
    services.start_proxy(directory, DEPLOYMENT)
    ((command, options),) = started
    assert command[:5] == ["/usr/sbin/nginx", "-p", f"{directory.resolve()}/", "-c", "nginx.conf"]
    assert option(command, "-g").startswith("load_module /modules/stream.so;")
    assert options["cwd"] == directory  # the socket's path is relative


@pytest.mark.parametrize(
    ("options", "directive"),
    [
        (
            "--with-stream=dynamic --with-http_realip_module --modules-path={path}",
            "load_module {path}/ngx_stream_module.so;",
        ),
        ("--with-stream --with-http_realip_module", ""),
        ("--with-stream=dynamic --with-http_realip_module --modules-path=/nowhere", None),
        ("--with-stream=dynamic --modules-path={path}", None),
        ("--with-http_realip_module --with-stream_ssl_module", None),
        ("", None),
    ],
)
def test_stream_module_is_found_where_nginx_has_one(tmp_path, monkeypatch, options, directive):
    (tmp_path / "ngx_stream_module.so").touch()
    told = f"nginx version: x\nconfigure arguments: --with-cc-opt='-g -O2' {options.format(path=tmp_path)}\n"
    monkeypatch.setattr(front.subprocess, "run", lambda *arguments, **options: SimpleNamespace(stderr=told))
    found = front.stream_module.__wrapped__("/usr/sbin/nginx")
    assert found == (directive and directive.format(path=tmp_path))


@pytest.mark.parametrize("module", ["", None])
def test_front_counts_connections_where_nginx_can(directory, monkeypatch, module):
    monkeypatch.setattr(front, "stream_module", lambda program: module)
    (directory / "state" / "nginx.sock").touch()  # of one that was killed
    front.write_front(directory, "nginx", 9555)
    written = {name: (directory / "state" / name).read_text() for name in ("front.conf", "listen.conf")}
    assert not (directory / "state" / "nginx.sock").exists()
    if module is None:
        assert written == {"front.conf": "", "listen.conf": "listen 9555 ssl backlog=1024;\n"}
    else:
        assert re.findall("(listen|limit_conn|proxy_pass) ([^ ;]*)", written["front.conf"]) == [
            ("limit_conn", "addresses"),
            ("listen", "9555"),
            ("proxy_pass", "unix:state/nginx.sock"),
        ]
        assert written["listen.conf"].startswith("listen unix:state/nginx.sock ssl proxy_protocol ")


def test_nginx_that_is_not_installed_is_named(directory, started, monkeypatch):
    monkeypatch.setattr(services.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="nginx is not installed"):
        services.start_proxy(directory, DEPLOYMENT)


def test_nginx_that_does_not_start_is_quoted(directory, started, monkeypatch):
    failed = SimpleNamespace(returncode=1, stderr="bind() to 0.0.0.0:9555 failed (98: Address already in use)\n")
    monkeypatch.setattr(services.subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(UserError, match=r"Address already in use.*9555.*nginx\.conf"):
        services.start_proxy(directory, DEPLOYMENT)


@pytest.mark.parametrize("content", [None, "", "no number", str(NOBODY)], ids=repr)
def test_service_without_a_living_process_does_not_run_and_is_not_stopped(directory, content):
    if content is not None:
        (directory / "state" / "nginx.pid").write_text(content)
    assert not processes.running(directory, "nginx")
    assert not processes.stop(directory, "nginx")


# --- which process is ours ---


@pytest.fixture
def stranger():
    """A process of another program."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_server_of_another_deployment_that_got_the_number_is_not_signalled(directory, tmp_path):
    other = tmp_path / "other"
    words = [sys.executable, "-c", "import time; time.sleep(60)", "deploy", "server"]
    for place, ours in ((other, False), (directory, True)):
        process = subprocess.Popen([*words, place])
        while words[-1] not in psutil.Process(process.pid).cmdline():
            time.sleep(0.01)
        (directory / "state" / "server.pid").write_text(str(process.pid))
        assert processes.running(directory, "server") == ours
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ["server", "nginx", "superlink"])
def test_another_program_that_got_the_number_is_not_signalled(directory, stranger, name):
    (directory / "state" / f"{name}.pid").write_text(str(stranger.pid))
    assert not processes.running(directory, name)
    assert not processes.stop(directory, name)
    assert stranger.poll() is None


PYTHON = str(Path(sys.executable).resolve())
IGNORES = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
SLOW = (
    "import os, pathlib, signal, sys, time\n"
    "def end(*_):\n"
    "    pathlib.Path(sys.argv[-1], 'state', 'server.pid').unlink()\n"
    "    time.sleep(0.3)\n"
    "    pathlib.Path(sys.argv[-1], 'ended').touch()\n"
    "    os._exit(130)\n"
    "signal.signal(signal.SIGTERM, end); print(flush=True); time.sleep(60)"
)


@pytest.fixture
def process(directory):
    """Starts a process with a command line, and returns it once it has set itself up."""
    made: list[subprocess.Popen[bytes]] = []

    def start(code: str, *words: str, name: str = PYTHON) -> subprocess.Popen[bytes]:
        command = [name, "-c", code, *words]
        made.append(subprocess.Popen(command, executable=PYTHON, cwd=directory, stdout=subprocess.PIPE))
        assert made[-1].stdout is not None
        made[-1].stdout.readline()
        return made[-1]

    yield start
    for one in made:
        one.kill()
        one.communicate()


def test_superlink_whose_number_was_lost_is_found_and_stopped_though_it_hangs(directory, process, started, monkeypatch):
    """A second one on the same database would come of it otherwise, and nobody could stop the first."""
    monkeypatch.setattr(services, "_ANSWER_SECONDS", 0.0)
    monkeypatch.setattr(services, "_END_SECONDS", 0.0)
    monkeypatch.setattr(SuperLink, "is_up", lambda self: bool(started))
    hung = process(IGNORES, "--database", str(directory / "state" / "superlink.db"))
    looks = process(IGNORES, str(directory / "state" / "superlink.db"))  # an editor, for example
    (directory / "state" / "superlink.pid").write_text(str(NOBODY))
    assert processes.running(directory, "superlink")
    services.start_superlink(directory, DEPLOYMENT)
    assert len(started) == 1
    assert hung.poll() is not None
    assert looks.poll() is None
    assert not processes.stop(directory, "superlink")


def test_superlink_that_answers_is_not_started_twice_though_its_number_was_lost(directory, process, started):
    process(IGNORES, "--database", str(directory / "state" / "superlink.db"))
    services.start_superlink(directory, DEPLOYMENT)
    assert started == []


def test_server_that_takes_its_time_to_end_is_not_killed(directory, process):
    """Its number is gone before it is; systemd would start a killed one again."""
    server = process(SLOW, "deploy", "server", str(directory))
    (directory / "state" / "server.pid").write_text(str(server.pid))
    assert processes.stop(directory, "server", seconds=60.0)
    assert server.poll() is not None
    assert (directory / "ended").exists()


WORKER, MASTER = "nginx: worker process", "nginx: master process nginx -p {directory}/ -c nginx.conf"


def test_worker_that_a_killed_nginx_has_left_is_ended_before_another_one_starts(directory, process, started):
    left = process(IGNORES.replace("SIG_IGN", "SIG_DFL"), name=WORKER)
    assert [one.pid for one in processes.orphans(directory)] == [left.pid]
    services.reload_proxy(directory, DEPLOYMENT)
    assert processes.orphans(directory) == []
    assert [command[0] for command, _ in started] == ["/usr/sbin/nginx"]


def test_reload_without_a_new_worker_is_an_error_and_says_how_to_mend_it(directory, process, started, monkeypatch):
    monkeypatch.setattr(services, "_RELOAD_SECONDS", 0.0)
    process(IGNORES, name=MASTER.format(directory=directory))
    with pytest.raises(
        UserError, match=r"nginx did not take the change.*no new worker.*repeat the command.*deploy stop"
    ):
        services.reload_proxy(directory, DEPLOYMENT)
    monkeypatch.setattr(services, "_RELOAD_SECONDS", 60.0)
    several = iter([{1}, {1}, {1, 2}])
    monkeypatch.setattr(services, "workers", lambda directory: next(several))
    services.reload_proxy(directory, DEPLOYMENT)


# --- the watchdog ---


def test_watchdog_says_once_what_it_cannot_start_and_takes_its_time(directory, monkeypatch):
    def fails(*_):
        raise UserError("nginx did not start: port 9555 is in use.")

    monkeypatch.setattr(watchdog, "running", lambda *_: True)
    monkeypatch.setattr(watchdog, "start_proxy", fails)
    dog = watchdog.Watchdog(directory, DEPLOYMENT)
    file = io.StringIO()
    pauses = []
    with shown(Console(file=file, width=200)):
        for _ in range(7):
            dog.look()
            pauses.append(dog.pause)
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert file.getvalue() == "nginx did not start: port 9555 is in use. Trying again.\n"
    assert dog.trouble == "nginx did not start: port 9555 is in use."
    monkeypatch.setattr(watchdog, "start_proxy", lambda *_: None)
    dog.look()
    assert (dog.trouble, dog.pause) == ("", 1.0)


def test_what_the_watchdog_says_is_on_the_screen(directory, started, monkeypatch):
    """Its thread has the display of the one that started it."""
    done = threading.Event()
    monkeypatch.setattr(watchdog, "_SECONDS", 0.0)
    monkeypatch.setattr(watchdog.Watchdog, "look", lambda self: (say("down"), done.set()))
    file = io.StringIO()
    with shown(Console(file=file, width=200)), watchdog.kept_running(directory, DEPLOYMENT):
        assert done.wait(60)
    assert "down\n" in file.getvalue()


def test_logs_of_services_are_bounded_while_they_append(directory, monkeypatch):
    monkeypatch.setattr(watchdog, "_LOG_BYTES", 100)
    log = directory / "logs" / "nginx-access.log"
    (directory / "logs" / "superlink.log").symlink_to(directory / "superexec.key")
    with log.open("ab", buffering=0) as stream:
        for index in range(10):
            stream.write(bytes([48 + index]) * 60)
            watchdog.shorten(directory / "logs")
    assert log.read_bytes() == b""
    assert log.with_name("nginx-access.log.1").read_bytes() == b"8" * 60 + b"9" * 60
    assert (directory / "superexec.key").stat().st_size == 32


def test_log_that_is_a_symbolic_link_is_not_followed(directory, started, tmp_path):
    (directory / "logs" / "superlink.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"logs .*can't be written|can't be written"):
        services.start_superlink(directory, DEPLOYMENT)
    assert not (tmp_path / "elsewhere").exists()
