"""A real SuperLink, nginx and clients on this machine give what the simulation gives."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.deploy.conftest import Deploy, Deployed, needs_nginx

from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.deploy.admission import renew
from fedcollm.deploy.certificates import Authority
from fedcollm.deploy.status import read_written, status
from fedcollm.messages import Adapter, RoundRecord
from fedcollm.runs import directory as run_directory
from fedcollm.runs.runner import run

pytestmark = [pytest.mark.deploy, pytest.mark.slow, needs_nginx]


@pytest.fixture(autouse=True)
def one_thread():
    """As in the deployment's processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def simulated(config: RunConfig, out: Path) -> tuple[RoundRecord, dict[str, Adapter]]:
    run(config, out)
    return last_state(out)


def last_state(out: Path) -> tuple[RoundRecord, dict[str, Adapter]]:
    state = run_directory.load_round(out)
    assert state is not None
    return state


def test_plain_run_equals_the_simulation_bit_for_bit(deploy: Deploy, tmp_path: Path):
    deployed = deploy(**{"client.augmentation": {"kinds": {"word_dropout": 0.9}}})
    for client in ("0", "1"):
        deployed.start_client(client)
    deployed.start_server()
    deployed.finish()
    record, adapters = last_state(deployed.root / "run")
    wanted, expected = simulated(deployed.config, tmp_path / "simulated")
    assert equal(adapters, expected)
    assert record.round == 2
    assert (record.scores, record.losses, record.participants) == (wanted.scores, wanted.losses, wanted.participants)
    for client in ("0", "1"):
        final = load_file(deployed.client_directory(client) / "final" / "adapter" / "adapter_model.safetensors")
        assert all(torch.equal(final[name], tensor) for name, tensor in expected["slm"].items())


def equal(adapters: dict[str, Adapter], expected: dict[str, Adapter]) -> bool:
    """Bit for bit, both roles."""
    return all(
        torch.equal(adapters[role][name], tensor) for role in ("slm", "llm") for name, tensor in expected[role].items()
    )


def rehearsed(config: RunConfig) -> RunConfig:
    """The same without secure aggregation, but rounded as it rounds."""
    return changed(
        config,
        {
            "federation.secure_aggregation.enabled": False,
            "federation.secure_aggregation.simulate_quantization": True,
        },
    )


def test_secure_run_survives_kills_of_client_server_and_superlink(deploy: Deploy, tmp_path: Path):
    """Each is killed with SIGKILL while a client trains; the same clients take part, so nothing is lost."""
    changes = {"task.clients": 3, "task.private_size": 24, "task.public_size": 60}
    deployed = deploy(**changes, **{"federation.secure_aggregation.enabled": True, "federation.rounds": 3})
    for client, held in (("0", 1), ("1", 2), ("2", 3)):
        deployed.start_client(client, held)
    deployed.start_server()
    deployed.wait_until_held("0")
    deployed.kill("client-0")
    deployed.start_client("0")
    deployed.wait_until_held("1")
    renew(deployed.server_directory, Authority.load(deployed.root / "ca"), 30)
    deployed.kill("server")
    deployed.start_server()
    deployed.release("1")
    deployed.wait_until_held("2")
    link = superlink_number(deployed)
    os.kill(link, signal.SIGKILL)
    deployed.release("2")
    deployed.finish()
    record, adapters = last_state(deployed.root / "run")
    assert deployed.log("client-0").count("round 1: training") == 2
    assert record.participants == ("0", "1", "2")
    assert superlink_number(deployed) != link
    _, expected = simulated(rehearsed(deployed.config), tmp_path / "simulated")
    assert equal(adapters, expected)


def superlink_number(deployed: Deployed) -> int:
    return int((deployed.server_directory / "state" / "superlink.pid").read_text())


def test_server_waits_for_its_clients_stops_with_130_and_goes_on(deploy: Deploy):
    deployed = deploy(**{"federation.min_clients": 2})
    server = deployed.start_server()
    deployed.start_client("1")
    deployed.wait_for(lambda: "1 of 2 are connected, and 2 are needed. Not connected: 0" in deployed.log("server"))
    assert "waiting for clients" in read_written(deployed.server_directory).phase
    # a process of its own: stop_all looks for children that have ended, and would take the exit code
    command = [sys.executable, "-m", "fedcollm", "deploy", "stop", deployed.server_directory]
    subprocess.run(command, check=True, capture_output=True)
    deployed.processes.pop("server")
    assert server.wait() == 130, deployed.log("server")
    assert status(deployed.server_directory, deployed.root / "run").now.reason.startswith("it was stopped")
    deployed.start_server()
    deployed.start_client("0")
    deployed.finish()
    assert last_state(deployed.root / "run")[0].participants == ("0", "1")
    lines = (deployed.server_directory / "logs" / "fedcollm.log").read_text().splitlines()
    assert any(" round=2 " in line and " SLM " in line for line in lines)
    assert "finished: all rounds" in lines[-1]
    client = (deployed.client_directory("0") / "logs" / "fedcollm.log").read_text()
    assert " round=1 round 1: training" in client
