"""How the SuperLink and nginx are started, without starting them."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from fedcollm.deploy import front, services
from fedcollm.deploy.directories import Deployment
from fedcollm.deploy.roster import SignedRoster
from fedcollm.errors import UserError
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
    assert not services.running(directory, "nginx")
    assert not services.stop(directory, "nginx")


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
        assert services.running(directory, "server") == ours
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ["server", "nginx", "superlink"])
def test_another_program_that_got_the_number_is_not_signalled(directory, stranger, name):
    (directory / "state" / f"{name}.pid").write_text(str(stranger.pid))
    assert not services.running(directory, name)
    assert not services.stop(directory, name)
    assert stranger.poll() is None


@pytest.mark.parametrize(("age", "ours"), [(0, True), (3600, False)])
def test_number_that_was_written_before_its_process_began_is_another_ones(directory, age, ours):
    words = ["-c", "import time; time.sleep(60)", str(directory / "state" / "superlink.db")]
    process = subprocess.Popen([sys.executable, *words])
    while words[-1] not in psutil.Process(process.pid).cmdline():  # it still has this process's own words
        time.sleep(0.01)
    file = directory / "state" / "superlink.pid"
    file.write_text(str(process.pid))
    os.utime(file, (time.time() - age, time.time() - age))
    assert services.running(directory, "superlink") == ours
    assert services.stop(directory, "superlink") == ours
    assert psutil.pid_exists(process.pid) != ours  # `stop` has waited for it
    process.kill()
    process.wait()


def test_log_that_is_a_symbolic_link_is_not_followed(directory, started, tmp_path):
    (directory / "logs" / "superlink.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"logs .*can't be written|can't be written"):
        services.start_superlink(directory, DEPLOYMENT)
    assert not (tmp_path / "elsewhere").exists()
