"""`fedcollm deploy` on the command line: what it says, and how it exits."""

import json
import re
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
    assert state["now"]["clients"] == {name: {"state": "never seen", "last_seen": None, "lost": ""} for name in "abc"}
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


# --- joining ---


@pytest.fixture
def invited(command, config_file, tmp_path):
    """A deployment whose clients have not joined."""
    arguments = ("--host", "localhost", "--clients", "a,b,c", *SECURE, "--out", tmp_path / "out")
    assert command("init", config_file, *arguments)[0] == 0
    return tmp_path / "out"


def joined(command, out, name: str) -> str:
    """Join, and return the fingerprint that was printed."""
    code, said, _ = command("join", out / "invitations" / f"{name}.json", "--out", out / name, "--yes")
    assert code == 0
    return next(line.strip() for line in said.splitlines() if re.fullmatch(r" *([0-9a-f]{4} ){15}[0-9a-f]{4}", line))


def test_client_that_does_not_accept_makes_no_keys(command, invited):
    code, said, error = command("join", invited / "invitations" / "a.json", "--out", invited / "a")
    assert code == 2
    assert "masked update in every round" in said
    assert "give --yes" in error
    assert not (invited / "a").exists()


def test_clients_are_admitted_by_their_fingerprints_and_removed(command, invited):
    server, ca = invited / "server", ("--ca", invited / "ca")
    prints = {name: joined(command, invited, name) for name in "ab"}
    request = invited / "a" / "request.json"
    code, said, error = command("admit", server, request, *ca, "--fingerprint", prints["b"])
    assert (code, prints["a"] in said) == (2, True)
    assert "exchanged it on its way. Nothing was changed" in error
    code, _, error = command("admit", server, request, *ca)
    assert (code, "give --fingerprint" in error) == (2, True)
    code, said, _ = command("admit", server, request, *ca, "--fingerprint", prints["a"].upper().replace(" ", ":"))
    assert (code, said.splitlines()[-1]) == (0, "admitted a; roster 2: a")
    assert command("remove", server, "a", *ca) == (0, "removed a; roster 3: nobody\n", "")
    assert command("remove", server, "a", *ca) == (
        0,
        "removed a; roster 3: nobody\n",
        "",
    )  # the services are told again
    assert command("remove", server, "d", *ca)[0] == 2
    code, _, error = command("server", server, "--page", "none")
    assert (code, "no client is admitted yet" in error) == (2, True)


def test_certificate_is_renewed(command, invited):
    code, said, _ = command("renew", invited / "server", "--ca", invited / "ca", "--days", 30)
    assert code == 0
    assert re.fullmatch(r"the server's certificate is valid until \d{4}-\d\d-\d\d \d\d:\d\d UTC\n", said)
    assert command("renew", invited / "server", "--ca", invited / "server")[0] == 2


def test_check_exits_with_2_if_anything_is_wrong(command, out, tmp_path):
    code, said, _ = command("check", out / "clients" / "a", "--data", tmp_path / "none")
    assert code == 2
    assert said.startswith("ok       keys: ")
    assert "problem  data and model: --data" in said
