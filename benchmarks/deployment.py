"""A real deployment on this machine: how long, how many bytes, and does it give what the simulation gives?

    python benchmarks/deployment.py [--rounds 3] [--threads 1] [--compare] [--out DIR]

SuperLink behind nginx, four clients, each a process, TLS, node authentication and secure aggregation; `icd10` and its
real pair of models. Bytes are counted by a relay between each client and nginx: what the sockets carry, TLS included.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedcollm.config import RunConfig
from fedcollm.config.loading import load_config
from fedcollm.deploy import directories as names
from fedcollm.deploy.directories import Membership
from fedcollm.deploy.initialize import Choices, Site, initialize
from fedcollm.deploy.server import serving
from fedcollm.deploy.status import stop_all
from fedcollm.federation.cohort import Transport
from fedcollm.messages import Answer, Request, TrainRequest
from fedcollm.runs import directory as run_directory
from fedcollm.runs.build import Inputs, Remote
from fedcollm.runs.runner import rounds, run
from fedcollm.runs.shrink import shrunk

FEDCOLLM = Path(sys.executable).with_name("fedcollm")


@dataclass
class Relay:
    """Carries TCP connections to a port of this machine, and counts the bytes of both directions."""

    target: int
    up: int = 0
    down: int = 0
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    def start(self) -> int:
        """Listen; returns the port."""
        threading.Thread(target=self._accept, daemon=True).start()
        return self.listener.getsockname()[1]

    def _accept(self) -> None:
        while True:
            near, _ = self.listener.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            threading.Thread(target=self._carry, args=(near, far, "up"), daemon=True).start()
            threading.Thread(target=self._carry, args=(far, near, "down"), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        try:
            while data := source.recv(2**16):
                setattr(self, way, getattr(self, way) + len(data))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            sink.close()


@dataclass
class Timed:
    """A transport that notes how long every exchange took."""

    inner: Transport
    training: list[float] = field(default_factory=list)
    phases: list[float] = field(default_factory=list)

    def clients(self) -> Sequence[str]:
        """As the transport inside."""
        return self.inner.clients()

    def ask(self, requests: Mapping[str, Request]) -> Iterator[Answer]:
        """As the transport inside, timed."""
        start = time.perf_counter()
        yield from self.inner.ask(requests)
        trains = isinstance(next(iter(requests.values())), TrainRequest)
        (self.training if trains else self.phases).append(time.perf_counter() - start)


def difference(one: Path, other: Path) -> dict[str, float]:
    """Largest absolute difference of the final adapters, by role."""
    states = [run_directory.load_round(place) for place in (one, other)]
    here, there = (state[1] if state else {} for state in states)
    return {
        role: max(float((here[role][name] - tensor).abs().max()) for name, tensor in adapter.items())
        for role, adapter in there.items()
    }


def trained_seconds(log: Path) -> dict[int, float]:
    """Round to the seconds that a client trained, from its log."""
    found = re.findall(r"round (\d+): trained in ([\d.]+) s", log.read_text())
    return {int(index): float(seconds) for index, seconds in found}


def deployed(config: RunConfig, place: Path, environment: Mapping[str, str]) -> None:
    """Run the deployment, and print a line a round."""
    port = free_port()
    deployment = initialize(config, Site("localhost", port, free_port()), place, Choices(demo_data=True))
    relays, processes = {}, []
    for client in deployment.clients:
        relays[client] = Relay(port)
        directory = place / "clients" / client
        file = directory / names.MEMBERSHIP
        membership = Membership.model_validate_json(file.read_text())
        address = f"localhost:{relays[client].start()}"
        file.write_text(membership.model_copy(update={"address": address}).model_dump_json())
        with (place / f"client-{client}.log").open("wb") as log:
            command = [FEDCOLLM, "deploy", "client", directory, "--data", directory / "data"]
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    try:
        with serving(place / "server") as connected:
            remote = connected.remote
            timed = Timed(remote.transport)
            before, phases = [0, 0], 0
            inputs = Inputs(remote=Remote(timed, remote.run, remote.roster))
            for record in rounds(config, place / "run", inputs):
                count = [sum(getattr(relay, way) for relay in relays.values()) // len(relays) for way in ("up", "down")]
                if record.round:
                    longest = max(trained_seconds(place / f"client-{c}.log")[record.round] for c in relays)
                    spent = timed.training[-1] - longest + sum(timed.phases[phases:])
                    print(
                        f"round {record.round}: training {longest:.1f} s; outside training {spent:.2f} s (first "
                        f"exchange {timed.training[-1] - longest:.2f}, phases "
                        f"{', '.join(f'{seconds:.2f}' for seconds in timed.phases[phases:])}); distillation "
                        f"{record.seconds['distillation']:.1f} s; bytes a client at the socket: up "
                        f"{count[0] - before[0]:,}, down {count[1] - before[1]:,}; in the record: up "
                        f"{record.bytes_up:,}, down {record.bytes_down:,}; participants {list(record.participants)}; "
                        f"CPU load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
                        flush=True,
                    )
                before, phases = count, len(timed.phases)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        stop_all(place / "server")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def main() -> None:
    """Deploy, simulate, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="icd10")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of every process, so that all compute the same bits")
    parser.add_argument("--compare", action="store_true", help="simulate it three times too, and compare the adapters")
    parser.add_argument("--out", type=Path, help="keep everything here")
    parser.add_argument("--set", action="append", default=[], help="JSON value: a.b=c")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "PYTHONUNBUFFERED": "1"}
    place = arguments.out or Path(tempfile.mkdtemp())
    changes = {"federation.rounds": arguments.rounds, "evaluation.every": arguments.rounds}
    changes |= {key: json.loads(value) for key, value in (setting.split("=", 1) for setting in arguments.set)}
    slm = shrunk(load_config(arguments.preset, **changes).slm, torch.device("cpu"))  # a deployment takes a directory
    changes |= {f"slm.{key}": getattr(slm, key) for key in ("source", "layers", "layer_choice", "mlp_share", "heal")}
    config = load_config(arguments.preset, **changes)
    secure = load_config(arguments.preset, **changes, **{"federation.secure_aggregation.enabled": True})
    try:
        deployed(secure, place / "deployment", environment)
        if not arguments.compare:
            return
        rehearsed = load_config(
            arguments.preset, **changes, **{"federation.secure_aggregation.simulate_quantization": True}
        )
        others = {
            "the simulation with secure aggregation": secure,
            "the simulation without it, rounded in the same way": rehearsed,
            "the simulation without it": config,
        }
        for name, other in others.items():
            run(other, place / name)
            print(f"largest difference to {name}: {difference(place / 'deployment' / 'run', place / name)}", flush=True)
    finally:
        if arguments.out is None:
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
