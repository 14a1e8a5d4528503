"""A whole deployment on this machine: real SuperLink, nginx and clients, each a process."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.conftest import wait_for

from fedcollm.config import RunConfig
from fedcollm.config.loading import load_config
from fedcollm.data.catalogue import load_pool
from fedcollm.data.partition import split
from fedcollm.deploy.admission import admit
from fedcollm.deploy.certificates import Authority
from fedcollm.deploy.initialize import Choices, Site, initialize
from fedcollm.deploy.invitations import join, read_invitation
from fedcollm.deploy.processes import stop
from fedcollm.deploy.status import stop_all
from fedcollm.modalities.text.task import TextExample

PROGRAM = (sys.executable, "-m", "fedcollm")
HELD_CLIENT = Path(__file__).with_name("held_client.py")
#: A machine may be so busy that a client needs minutes to start; only what a test does decides who is lost.
PATIENT = {"federation.deadlines.phase": 3600.0, "federation.deadlines.absence": 3600.0}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}

needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")


def free_port() -> int:
    """A port that is free, and below those that systems give to outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


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

    def start(self, name: str, *arguments: str, program: Sequence[str | Path] = PROGRAM) -> subprocess.Popen[bytes]:
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*program, "deploy", *arguments], stdout=log, stderr=log, env=ENVIRONMENT
            )
        return self.processes[name]

    def start_server(self) -> subprocess.Popen[bytes]:
        return self.start(
            "server", "server", str(self.server_directory), "--out", str(self.root / "run"), "--page", "none"
        )

    def start_client(self, client: str, held_in_round: int | None = None) -> subprocess.Popen[bytes]:
        """Start a client, which may wait in the middle of a round's training until it is killed or released."""
        place = self.client_directory(client)
        arguments = ("client", str(place), "--data", str(place / "data"))
        held = () if held_in_round is None else (sys.executable, HELD_CLIENT, str(held_in_round), self._gate(client))
        return self.start(f"client-{client}", *arguments, program=held or PROGRAM)

    def _gate(self, client: str) -> Path:
        return self.root / f"gate-{client}"

    def wait_until_held(self, client: str) -> None:
        """Return once a client waits in its training."""
        self.wait_for(self._gate(client).with_suffix(".waiting").exists)

    def release(self, client: str) -> None:
        """Let a client go on."""
        self._gate(client).touch()

    def wait_for(self, event: Callable[[], object]) -> None:
        """Return once the event has happened, with everything still running."""
        wait_for(lambda: event() or self.ended())
        assert event(), {name: self.log(name) for name in self.ended()}

    def finish(self) -> None:
        """Return once the server has ended well, has told the clients, and they have ended well too."""
        wait_for(lambda: len(self.ended()) == len(self.processes) or any(self.ended().values()))
        assert not any(self.ended().values()), {name: self.log(name) for name in self.processes}

    def ended(self) -> dict[str, int]:
        """Name to exit code of each process that has ended."""
        codes = {name: process.poll() for name, process in self.processes.items()}
        return {name: code for name, code in codes.items() if code is not None}

    def log(self, name: str) -> str:
        file = self.root / f"{name}.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        stop(self.server_directory, "superlink", seconds=0)  # it would take its time
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
        config = load_config("icd10", **tiny_config.model_dump(mode="json"), **PATIENT, **changes)
        site = Site("localhost", free_port(), free_port())
        plain = not config.federation.secure_aggregation.enabled
        deployment = initialize(config, site, root, Choices(plain_updates=plain))
        parts = split(load_pool(config.task, config.seed), config.task, config.seed)
        authority = Authority.load(root / "ca")
        for client in deployment.invited:
            invitation, _ = read_invitation(root / "invitations" / f"{client}.json")
            admit(root / "server", join(invitation, root / "clients" / client), authority)
            data = root / "clients" / client / "data"
            data.mkdir()
            (data / "train.jsonl").write_text(example_rows(parts.private[client]))
            (data / "test.jsonl").write_text(example_rows(parts.test))
        made.append(Deployed(root, config))
        return made[-1]

    yield make
    for deployed in made:
        deployed.close()
