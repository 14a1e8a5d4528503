"""`fedcollm deploy` on the command line: what it says, and how it exits."""

import json
import sys

import pytest
import yaml
from tests.transports.small_federation import small_config

from fedcollm.cli import app as cli
from fedcollm.cli import deploy as cli_deploy


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line in this process: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedcollm", "deploy", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def config_file(model_directories, word_data, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(small_config(model_directories, word_data).model_dump(mode="json")))
    return file


SECURE = ("--set", "federation.secure_aggregation=true")


@pytest.fixture
def out(command, config_file, tmp_path):
    """A deployment."""
    arguments = ("--demo", "--host", "localhost", "--clients", "a,b,c", *SECURE, "--out", tmp_path / "out")
    code, said, error = command("init", config_file, *arguments)
    assert (code, error) == (0, "")
    assert said == (tmp_path / "out" / "README.txt").read_text()
    return tmp_path / "out"


def test_init_writes_a_directory_for_each_name(out):
    assert sorted(path.name for path in (out / "clients").iterdir()) == ["a", "b", "c"]
    deployment = json.loads((out / "server" / "deployment.json").read_text())
    assert (deployment["port"], deployment["superlink_port"]) == (9443, 9093)


def test_init_into_an_existing_directory_exits_with_2(command, config_file, out):
    code, said, error = command("init", config_file, "--host", "localhost", *SECURE, "--out", out)
    assert (code, said) == (2, "")
    assert "exists already" in error


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "--unsafe-plain-updates"),
        ((*SECURE, "--clients", "a,b"), "at least 3 clients"),
        ((*SECURE, "--clients", "a,b,,c"), "name ''"),
        ((*SECURE, "--clients", "a,b,c/d"), "name 'c/d'"),
        ((*SECURE, "--demo-data"), "your own data has no parts"),
        ((*SECURE, "--demo-data", "--clients", "a,b,c"), "the preset's parts have no names"),
        (("--set", "federation.secure=true"), "federation"),
        ((*SECURE, "--port", "http"), "--port"),
    ],
    ids=lambda value: " ".join(value)[-40:],
)
def test_init_that_is_refused_exits_with_2_and_writes_nothing(command, config_file, tmp_path, arguments, reason):
    code, said, error = command("init", config_file, "--host", "localhost", *arguments, "--out", tmp_path / "out")
    assert (code, said) == (2, "")
    assert reason in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_init_without_a_host_exits_with_2(command, config_file):
    code, _, error = command("init", config_file)
    assert code == 2
    assert "--host" in error


def test_image_task_exits_with_2(command, tmp_path):
    code, _, error = command("init", "digits", "--host", "localhost", *SECURE, "--out", tmp_path / "out")
    assert code == 2
    assert "digits can't be deployed" in error


@pytest.mark.parametrize("name", ["server", "status", "stop"])
def test_directory_that_is_no_servers_exits_with_2(command, out, name):
    code, said, error = command(name, out / "clients" / "a")
    assert (code, said) == (2, "")
    assert "is not a server's directory" in error
    code, _, error = command(name, out / "nothing")
    assert code == 2
    assert "Traceback" not in error


def test_client_with_an_open_key_exits_with_2(command, out):
    (out / "clients" / "a" / "node.key").chmod(0o644)
    code, _, error = command("client", out / "clients" / "a", "--data", out)
    assert code == 2
    assert "node.key can be read by others (mode 644). Run: chmod 600" in error.replace("\n", " ")


def test_client_without_data_exits_with_2(command, out):
    code, _, error = command("client", out / "clients" / "a", "--data", out / "nothing")
    assert code == 2
    assert "no such file or directory" in error
    assert command("client", out / "clients" / "a")[0] == 2


def test_status_of_what_never_ran(command, out):
    (out / "server" / "state").mkdir()
    code, said, _ = command("status", out / "server", "--json")
    assert code == 0
    state = json.loads(said)
    assert state["services"] == {"server": False, "superlink": False, "nginx": False}
    assert state["now"]["clients"] == dict.fromkeys("abc", {"state": "never seen", "last_seen": None, "lost": ""})
    assert state["last"] is None
    code, said, _ = command("status", out / "server")
    assert code == 0
    assert "last finished round: none yet of 2" in said


def test_stop_of_what_never_ran(command, out):
    assert command("stop", out / "server") == (0, "stopped: nothing was running\n", "")


def test_without_flower_the_extra_is_named(command, monkeypatch):
    monkeypatch.setattr(cli_deploy.importlib.util, "find_spec", lambda name: None)
    code, _, error = command("status", "nothing")
    assert code == 2
    assert "pip install 'fedcollm[deploy]'" in error
