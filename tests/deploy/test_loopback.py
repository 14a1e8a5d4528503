"""A real SuperLink, nginx and clients on this machine give what the simulation gives."""

import os
import signal
from pathlib import Path

import pytest
import torch
from tests.deploy.conftest import Deploy, Deployed, needs_nginx, wait_for

from fedcollm.config import RunConfig
from fedcollm.messages import Adapter, RoundRecord
from fedcollm.runs import directory as run_directory
from fedcollm.runs.runner import run

pytestmark = [pytest.mark.deploy, needs_nginx]


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


def finish(deployed: Deployed, seconds: float = 90) -> None:
    server = deployed.processes["server"]
    wait_for(lambda: any(process.poll() is not None for process in deployed.processes.values()), seconds)
    assert server.poll() is not None, [deployed.log(name) for name in deployed.processes]
    assert server.returncode == 0, deployed.log("server")


def test_plain_run_equals_the_simulation_bit_for_bit(deploy: Deploy, tmp_path: Path):
    deployed = deploy()
    for client in ("0", "1"):
        deployed.start_client(client)
    deployed.start_server()
    finish(deployed)
    record, adapters = last_state(deployed.root / "run")
    wanted, expected = simulated(deployed.config, tmp_path / "simulated")
    assert equal(adapters, expected)
    assert record.round == 2
    assert (record.scores, record.losses, record.participants) == (wanted.scores, wanted.losses, wanted.participants)


def equal(adapters: dict[str, Adapter], expected: dict[str, Adapter]) -> bool:
    """Bit for bit, both roles."""
    return all(
        torch.equal(adapters[role][name], tensor) for role in ("slm", "llm") for name, tensor in expected[role].items()
    )


def rehearsed(config: RunConfig) -> RunConfig:
    """The same without secure aggregation, but rounded as it rounds."""
    masking = config.federation.secure_aggregation.model_copy(update={"simulate_quantization": True})
    federation = config.federation.model_copy(update={"secure_aggregation": False, "masking": masking})
    return config.model_copy(update={"federation": federation})


def test_secure_run_survives_kills_of_client_server_and_superlink(deploy: Deploy, tmp_path: Path):
    """Each is killed with SIGKILL while clients train; the same clients take part, so nothing is lost."""
    changes = {"task.clients": 4, "task.private_size": 24, "task.public_size": 60, "client.epochs": 30}
    deployed = deploy(**changes, **{"federation.secure_aggregation.enabled": True, "federation.rounds": 3})
    for client in ("0", "1", "2", "3"):
        deployed.start_client(client)
    deployed.start_server()
    wait_for(lambda: "round 1: training" in deployed.log("client-0"))
    deployed.kill("client-0")
    deployed.start_client("0")
    wait_for(lambda: "round 2: training" in deployed.log("client-1"))
    deployed.kill("server")
    deployed.start_server()
    wait_for(lambda: "round 3: training" in deployed.log("client-2"))
    link = int((deployed.server_directory / "state" / "superlink.pid").read_text())
    os.kill(link, signal.SIGKILL)
    finish(deployed)
    record, adapters = last_state(deployed.root / "run")
    assert deployed.log("client-0").count("round 1: training") == 2
    assert record.participants == ("0", "1", "2", "3")
    assert int((deployed.server_directory / "state" / "superlink.pid").read_text()) != link
    _, expected = simulated(rehearsed(deployed.config), tmp_path / "simulated")
    assert equal(adapters, expected)
