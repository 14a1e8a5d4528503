"""`fedcollm deploy status` and `stop`, which wait for neither models nor Flower to be imported."""

import socket
from dataclasses import dataclass
from pathlib import Path

from fedcollm.deploy import directories as names
from fedcollm.deploy.directories import Deployment
from fedcollm.deploy.services import running, stop, superlink
from fedcollm.errors import UserError
from fedcollm.messages import RoundRecord
from fedcollm.runs.directory import CONFIG, parse_config, read_records

_CONNECT_SECONDS = 2.0


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
    """Return what runs, who is connected, and how far the run is.

    Args:
        directory: of the server.
        out: run directory.

    Raises:
        UserError: the directory is no server's.
    """
    deployment = names.read(directory, names.DEPLOYMENT, Deployment)
    services = {name: running(directory, name) for name in ("server", "superlink", "nginx")}
    known = _known(directory, deployment)
    clients = {client: known.get(keys.node, "unknown") for client, keys in deployment.clients.items()}
    records = read_records(out)
    last = records[-1] if records else None
    config = parse_config(directory / CONFIG)
    return Status(deployment.run, services, clients, last, config.federation.rounds)


def _known(directory: Path, deployment: Deployment) -> dict[str, str]:
    """Return what the SuperLink says of each node, by public key; nothing if none answers."""
    try:
        socket.create_connection(("127.0.0.1", deployment.superlink_port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return {}  # without waiting for Flower to be imported
    link = superlink(directory, deployment)
    return {node.public_key.decode(): node.status for node in link.nodes()} if link.is_up() else {}


def stop_all(directory: Path) -> list[str]:
    """Stop the server, the SuperLink and nginx; return the names of those that ran.

    Raises:
        UserError: the directory is no server's.
    """
    names.read(directory, names.DEPLOYMENT, Deployment)
    return [name for name in ("server", "nginx", "superlink") if stop(directory, name)]


def default_out(directory: Path) -> Path:
    """Where a server's run goes by default."""
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory. Give the server's directory that `fedcollm deploy init` wrote.")
    return directory / "run"
