"""fedcollm where Python has neither `fcntl` nor `resource` nor `os.sched_getaffinity`, as on Windows."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from safetensors.torch import load_file

from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.deploy import directories
from fedcollm.deploy import server as deploy_server
from fedcollm.errors import UserError

#: Every process that Python starts runs this first, the workers of a comparison too.
BLOCKED = """
import os, sys
import psutil  # its part for Linux imports `resource` itself
sys.modules["fcntl"] = sys.modules["resource"] = None
if hasattr(os, "sched_getaffinity"):
    del os.sched_getaffinity
"""

IMPORT_ALL = """
import importlib, pkgutil, sys
import filelock, fedcollm
for module in pkgutil.walk_packages(fedcollm.__path__, "fedcollm."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert sys.modules["fcntl"] is None and sys.modules["resource"] is None
assert filelock.FileLock is (filelock.WindowsFileLock if sys.platform == "win32" else filelock.SoftFileLock)
"""

#: Kills its own process in its fourth training, so in round 2 after the first of two clients.
KILLED = """
import sys
import psutil
from fedcollm.federation import client
fit, calls = client.fit, []
def dying(*args, **kwargs):
    calls.append(1)
    if len(calls) == 4:
        psutil.Process().kill()
    return fit(*args, **kwargs)
client.fit = dying
import fedcollm
fedcollm.run(fedcollm.load_config(sys.argv[1]), sys.argv[2])
"""

Python = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def python(tmp_path: Path) -> Python:
    """Run Python in a process of its own in which the modules are blocked."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(BLOCKED, encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(tmp_path / "blocked"), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def call(*arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)

    return call


def written(config: RunConfig, file: Path) -> Path:
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    return file


def records(directory: Path) -> list[dict[str, object]]:
    """What stands in a run's records, except what no two runs have in common."""
    lines = (directory / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "peak_memory_bytes")} for line in lines]


def test_every_module_imports(python):
    done = python("-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_killed_run_that_is_resumed_equals_an_uninterrupted_one(python, tiny_config, tmp_path):
    file = written(changed(tiny_config, {"federation.rounds": 3}), tmp_path / "config.yaml")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = python("-m", "fedcollm", "run", file, "--out", whole)
    assert done.returncode == 0, done.stderr
    assert python("-c", KILLED, file, parts).returncode not in (0, 1, 2)
    assert (parts / ".lock").exists()
    assert [record["round"] for record in records(parts)] == [0, 1]
    done = python("-m", "fedcollm", "run", "--resume", "--out", parts, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["peak_memory_bytes"] > 50_000_000
    assert records(parts) == records(whole)
    for name in ("checkpoint.safetensors", "adapters/slm/adapter_model.safetensors"):
        one, other = load_file(whole / name), load_file(parts / name)
        assert one.keys() == other.keys()
        assert all(one[key].equal(other[key]) for key in one)


@pytest.mark.slow
def test_comparison_with_two_processes_at_once(python, tiny_config, tmp_path):
    file = written(changed(tiny_config, {"federation.rounds": 1}), tmp_path / "config.yaml")
    arguments = ("compare", file, "--methods", "fedavg,fedcollm", "--jobs", 2, "--out", tmp_path / "all", "--json")
    done = python("-m", "fedcollm", *arguments)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["tiny"]["rows"]
    assert [row["method"] for row in rows] == [None, "fedavg", "fedcollm"]
    made_once = list((tmp_path / "all" / ".shared" / "round-1").glob("*.safetensors"))
    assert len(made_once) == 2  # one update a client, for both methods


def test_on_windows_the_bits_of_a_secret_say_nothing(tmp_path, monkeypatch):
    (tmp_path / "node.key").touch(mode=0o644)
    with pytest.raises(UserError, match="mode 644"):
        directories.check_private(tmp_path / "node.key")
    monkeypatch.setattr(directories, "os", SimpleNamespace(name="nt"))
    directories.check_private(tmp_path / "node.key")


def test_on_windows_a_deployments_server_says_where_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(deploy_server, "os", SimpleNamespace(name="nt"))
    with pytest.raises(UserError, match="Linux or macOS"), deploy_server.serving(tmp_path):
        pytest.fail("it was started")
