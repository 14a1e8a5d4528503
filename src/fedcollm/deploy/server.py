"""`fedcollm deploy server`: run the rounds of a deployment with its clients."""

import contextlib
import json
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedcollm.config import RunConfig
from fedcollm.deploy import directories as names
from fedcollm.deploy.admission import Admitted, grant_access, publish
from fedcollm.deploy.directories import Deployment
from fedcollm.deploy.page import address, served
from fedcollm.deploy.services import kept_running
from fedcollm.deploy.watch import Watch, WatchedTransport
from fedcollm.errors import UserError
from fedcollm.messages import Failure, FinishRequest, RoundRecord, readable
from fedcollm.progress import say
from fedcollm.runs import directory as run_directory
from fedcollm.runs.build import Inputs, Remote
from fedcollm.runs.runner import rounds
from fedcollm.storage import locked, make_directory, write_atomically, writing
from fedcollm.transports.flower.transport import Deadlines, FlowerTransport

_TOLD = "told.json"  # in state/: the clients that know that the run is finished


@dataclass(frozen=True)
class Serving:
    """A server that is connected to its clients.

    Attributes:
        config: configuration of the run.
        remote: connection to the clients.
        transport: the same connection, for messages that are no requests of a round.
        watch: what the server does.
    """

    config: RunConfig
    remote: Remote
    transport: WatchedTransport
    watch: Watch


@contextlib.contextmanager
def serving(directory: Path) -> Generator[Serving, None, None]:
    """Start the SuperLink and the proxy; both keep running when the context ends.

    Args:
        directory: the server's directory.

    Yields:
        The connection to the clients of the roster, which is now in force.

    Raises:
        UserError: a file is missing, or a program can't be started.
    """
    if os.name != "posix":
        raise UserError(
            "deploy server starts nginx and a SuperLink, which need Linux or macOS, and this is Windows. Start it on "
            "Linux or macOS, or in the Windows Subsystem for Linux. Clients may run on Windows."
        )
    deployment = names.read(directory, names.DEPLOYMENT, Deployment)
    config = names.read_config(directory)
    for name in (names.SERVER_KEY, names.SUPERLINK_KEY, names.SECRET):
        names.check_private(directory / name)
    if not deployment.clients:
        raise UserError(
            f"no client is admitted yet. Invited: {', '.join(deployment.invited)}. Admit each with: fedcollm deploy "
            f"admit {directory} REQUEST --ca CA"
        )
    with writing(directory):
        make_directory(directory / "state")
        make_directory(directory / "logs")
    with locked(directory / "state"):
        number = directory / "state" / "server.pid"
        write_atomically(number, str(os.getpid()), mode=0o600)
        try:
            with _connected(directory, deployment, config) as connected:
                yield connected
        finally:
            number.unlink(missing_ok=True)


@contextlib.contextmanager
def _connected(directory: Path, deployment: Deployment, config: RunConfig) -> Generator[Serving, None, None]:
    """Put the newest roster into force, and connect to its clients."""
    with locked(directory / "public"):
        clients = publish(directory, deployment)
    if waiting := [name for name in deployment.invited if name not in clients]:
        say(f"invited, but not admitted: {', '.join(waiting)}")
    nodes = {client: keys.node.encode() for client, keys in clients.items()}
    roster = names.public_keys({client: keys.signing for client, keys in clients.items()})
    waits = config.federation.deadlines
    deadlines = Deadlines(waits.training, waits.phase, waits.absence)
    with kept_running(directory, deployment) as link:
        grant_access(directory, deployment)
        link.register(nodes.values())
        watch = Watch(directory, config.federation.rounds, nodes)
        with link.run() as run, watch.running(run):
            transport = WatchedTransport(FlowerTransport(run, nodes, deadlines, admitted=Admitted(directory)), watch)
            yield Serving(config, Remote(transport, deployment.run, roster), transport, watch)


def run_rounds(directory: Path, out: Path, page: str | None = None) -> Iterator[RoundRecord]:
    """Run the rounds with the deployment's clients, and yield their records. Tell the clients when the run is finished.

    A run that an earlier process began is resumed.

    Args:
        directory: the server's directory.
        out: run directory.
        page: HOST:PORT of the status page; None for none.

    Raises:
        UserError: the server can't be started, or a round failed.
    """
    if page is not None:
        address(page)  # fails here rather than when the services run
    with serving(directory) as connected, served(directory, out, page):
        resume = (out / run_directory.CONFIG).exists()
        for record in rounds(connected.config, out, Inputs(remote=connected.remote), resume=resume):
            connected.watch.recorded(record)
            yield record
        tell(directory, out, connected)


def tell(directory: Path, out: Path, connected: Serving) -> None:
    """Send the final adapter to every client that does not have it yet.

    Args:
        directory: the server's directory, in which it is noted who was told.
        out: run directory.
        connected: the connection to the clients.
    """
    file, run = directory / "state" / _TOLD, connected.remote.run
    told: list[str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    state = run_directory.load_round(out)
    assert state is not None
    record, adapters = state
    adapter = {} if connected.config.control is not None else adapters["slm"]
    left = [client for client in connected.transport.clients() if client not in told]
    message = FinishRequest(record.round, adapter, run)
    for answer in connected.transport.ask(dict.fromkeys(left, message)) if left else ():
        if isinstance(answer, Failure):
            say(f"client {answer.client} was not told that the run is finished: {readable(answer.reason)}")
            continue
        told.append(answer.client)
        with writing(directory):
            write_atomically(file, json.dumps(told), mode=0o600)
    connected.watch.change(phase="finished", seconds_left=0.0)
