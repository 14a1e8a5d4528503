"""`fedcollm deploy server`, `status` and `stop`."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedcollm.config import RunConfig
from fedcollm.deploy import directories as names
from fedcollm.deploy.directories import Deployment
from fedcollm.deploy.services import kept_running, running, stop, superlink
from fedcollm.errors import UserError
from fedcollm.messages import RoundRecord
from fedcollm.runs import directory as run_directory
from fedcollm.runs.build import Remote
from fedcollm.runs.runner import rounds
from fedcollm.transports.flower.transport import Deadlines, FlowerTransport


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[tuple[RunConfig, Remote]]:
    """SuperLink and proxy running, and a way to the clients; both go on running afterwards.

    Raises:
        UserError: something is missing or can't be started.
    """
    deployment = names.read(directory, names.DEPLOYMENT, Deployment)
    config = run_directory.parse_config(directory / run_directory.CONFIG)
    for name in (names.SERVER_KEY, names.SECRET):
        names.check_private(directory / name)
    with run_directory.writing(directory):
        (directory / "state").mkdir(exist_ok=True, mode=0o700)
        (directory / "logs").mkdir(exist_ok=True)
    with run_directory.locked(directory / "state"):
        number = directory / "state" / "server.pid"
        number.write_text(str(os.getpid()))
        nodes = {client: keys.node.encode() for client, keys in deployment.clients.items()}
        roster = names.public_keys({client: keys.signing for client, keys in deployment.clients.items()})
        waits = config.federation.deadlines
        deadlines = Deadlines(waits.training, waits.phase, waits.absence)
        try:
            with kept_running(directory, deployment) as link:
                link.register(nodes.values())
                with link.run() as run:
                    yield config, Remote(FlowerTransport(run, nodes, deadlines), deployment.run, roster)
        finally:
            number.unlink(missing_ok=True)


def run_rounds(directory: Path, out: Path) -> Iterator[RoundRecord]:
    """The run's rounds with the deployment's clients; goes on where an earlier process stopped.

    Args:
        directory: of the server.
        out: run directory.
    """
    with serving(directory) as (config, remote):
        resume = (out / run_directory.CONFIG).exists()
        yield from rounds(config, out, resume=resume, remote=remote)


@dataclass(frozen=True)
class Status:
    """How a deployment is.

    Attributes:
        run: identity of the run.
        services: name to whether it runs.
        clients: id to what the SuperLink says: `registered` (never connected), `online`, `offline`; or `unknown`.
        last: the last finished round, if there is one.
        rounds: number of rounds of the run.
    """

    run: str
    services: dict[str, bool]
    clients: dict[str, str]
    last: RoundRecord | None
    rounds: int


def status(directory: Path, out: Path) -> Status:
    """What runs, who is connected, how far the run is."""
    deployment = names.read(directory, names.DEPLOYMENT, Deployment)
    services = {name: running(directory, name) for name in ("server", "superlink", "nginx")}
    link = superlink(directory, deployment)
    known = {node.public_key.decode(): node.status for node in link.nodes()} if link.is_up() else {}
    clients = {client: known.get(keys.node, "unknown") for client, keys in deployment.clients.items()}
    records = run_directory.read_records(out)
    last = records[-1] if records else None
    config = run_directory.parse_config(directory / run_directory.CONFIG)
    return Status(deployment.run, services, clients, last, config.federation.rounds)


def stop_all(directory: Path) -> list[str]:
    """Stop the server, the SuperLink and nginx; the names of those that ran."""
    names.read(directory, names.DEPLOYMENT, Deployment)
    return [name for name in ("server", "nginx", "superlink") if stop(directory, name)]


def default_out(directory: Path) -> Path:
    """Where a server's run goes by default."""
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory. Give the server's directory that `fedcollm deploy init` wrote.")
    return directory / "run"
