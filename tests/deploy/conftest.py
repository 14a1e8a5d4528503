"""A whole deployment on this machine: real SuperLink, nginx and clients, each a process."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from fedcollm.config import RunConfig
from fedcollm.config.loading import load_config
from fedcollm.data.catalogue import load_pool
from fedcollm.data.partition import split
from fedcollm.deploy.initialize import Site, initialize
from fedcollm.deploy.status import stop_all
from fedcollm.modalities.text.task import TextExample

PROGRAM = Path(sys.executable).with_name("fedcollm")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}

needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Until the condition holds.

    Raises:
        TimeoutError: it does not within so many seconds.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{condition} did not hold within {seconds} s")
        time.sleep(0.05)


class Deployed:
    """One deployment's directories and processes."""

    def __init__(self, root: Path, config: RunConfig):
        self.root, self.config = root, config
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def server_directory(self) -> Path:
        return self.root / "server"

    def client_directory(self, client: str) -> Path:
        return self.root / "clients" / client

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [PROGRAM, "deploy", *arguments], stdout=log, stderr=log, env=ENVIRONMENT
            )
        return self.processes[name]

    def start_server(self) -> subprocess.Popen[bytes]:
        return self.start("server", "server", str(self.server_directory), "--out", str(self.root / "run"))

    def start_client(self, client: str) -> subprocess.Popen[bytes]:
        place = self.client_directory(client)
        return self.start(f"client-{client}", "client", str(place), "--data", str(place / "data"))

    def log(self, name: str) -> str:
        file = self.root / f"{name}.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def kill(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def close(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        stop_all(self.server_directory)


def example_rows(examples: Iterable[TextExample]) -> str:
    """Rows in the columns of the tiny configuration's own format."""
    return "".join(
        json.dumps({"text": example.prompt.removesuffix(" is a"), "kind": example.label}) + "\n" for example in examples
    )


Deploy = Callable[..., Deployed]


@pytest.fixture
def deploy(tmp_path: Path, tiny_config: RunConfig) -> Iterator[Deploy]:
    """Makes a deployment of the tiny models; all its processes end with the test."""
    made: list[Deployed] = []

    def make(**changes: object) -> Deployed:
        root = tmp_path / f"deployment{len(made)}"
        config = load_config("icd10", **tiny_config.model_dump(mode="json"), **changes)
        site = Site("localhost", free_port(), free_port())
        plain = not config.federation.secure_aggregation
        deployment = initialize(config, site, root, plain_updates=plain)
        parts = split(load_pool(config.task, config.seed), config.task, config.seed)
        for client in deployment.clients:
            data = root / "clients" / client / "data"
            data.mkdir()
            (data / "train.jsonl").write_text(example_rows(parts.private[client]))
            (data / "test.jsonl").write_text(example_rows(parts.test))
        made.append(Deployed(root, config))
        return made[-1]

    yield make
    for deployed in made:
        deployed.close()
