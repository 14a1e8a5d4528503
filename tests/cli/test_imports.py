"""Commands that train nothing answer at once: they import no library that takes seconds."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from tests.transports.small_federation import small_config

from fedcollm.config.baselines import changed
from fedcollm.deploy.initialize import Site, initialize
from fedcollm.deploy.status import default_out

HEAVY = ["torch", "transformers", "peft", "datasets", "flwr", "numpy", "pandas", "scipy", "sklearn", "plotly"]

SCRIPT = f"""
import json, sys
from fedcollm.cli.app import main
code = 0
try:
    main()
except SystemExit as stop:
    code = stop.code or 0
heavy = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps([code, heavy]), file=sys.stderr)
"""


def imported(*arguments: object) -> tuple[int, list[str], str]:
    """Exit code, heavy modules and standard output of a command in a process of its own."""
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)], capture_output=True, text=True, env=os.environ, check=True
    )
    code, heavy = json.loads(process.stderr.splitlines()[-1])
    return code, heavy, process.stdout


@pytest.fixture(scope="module")
def server(model_directories, word_data, tmp_path_factory):
    """The server's directory of a deployment that never ran."""
    out = tmp_path_factory.mktemp("deployment") / "out"
    config = changed(small_config(model_directories, word_data), {"federation.secure_aggregation": True})
    initialize(config, Site("localhost", 9557, 9558), out)
    return out / "server"


@pytest.mark.parametrize(
    "arguments",
    [(), ("--help",), ("--version",), ("presets",), ("init", "icd10"), ("deploy", "--help"), ("run", "--help")],
    ids=" ".join,
)
def test_help_and_presets_wait_for_nothing(arguments):
    code, heavy, out = imported(*arguments)
    assert (code in (0, 2), heavy) == (True, [])  # 2: without a command
    assert out or not arguments


def test_configuration_that_does_not_exist_is_refused_at_once():
    assert imported("check", "nothere.yaml") == (2, [], "")


@pytest.mark.parametrize(("name", "said"), [("status", "none yet of 2"), ("stop", "nothing was running")])
def test_deploy_status_and_stop_wait_for_nothing(server, name, said):
    code, heavy, out = imported("deploy", name, server)
    assert (code, heavy) == (0, [])
    assert said in out


def test_deploy_status_reads_the_last_round_without_torch(server):
    run = default_out(server)
    run.mkdir(exist_ok=True)
    (run / "rounds.jsonl").write_text('{"round": 1, "participants": ["a"], "scores": {"slm": 0.5}}\n')
    code, heavy, out = imported("deploy", "status", server, "--json")
    assert (code, heavy) == (0, [])
    assert json.loads(out)["last"]["scores"] == {"slm": 0.5}


@pytest.mark.parametrize("name", ["status", "stop"])
@pytest.mark.parametrize("place", ["", "missing"])
def test_directory_that_is_no_servers_is_refused_at_once(tmp_path, name, place):
    assert imported("deploy", name, tmp_path / place) == (2, [], "")


@pytest.mark.parametrize("healed", [False, True])
def test_a_second_check_needs_torch_and_numpy_alone(model_directories, word_data, tmp_path, monkeypatch, healed):
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path / "cache"))
    small, config, text = small_config(model_directories, word_data), tmp_path / "small.yaml", tmp_path / "text.txt"
    text.write_text("".join(f"the cat {i} is red\n" for i in range(200)))
    heal = {"slm.layers": 1, "slm.heal": {"text": str(text), "size": 8}}
    config.write_text(yaml.safe_dump(changed(small, heal if healed else {}).model_dump(mode="json")))
    (code, first, out), (_, heavy, again) = imported("check", config), imported("check", config)
    assert (code, first[:3]) == (0, ["torch", "transformers", "peft"])
    assert (heavy, again) == (["torch", "numpy"], out)
