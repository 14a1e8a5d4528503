"""`fedcollm deploy status` and `stop`. Both are fast, because they import no models, and Flower only if necessary."""

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
    """The state of a deployment.

    Attributes:
        run: identity of the run.
        services: name of each service to whether it is running.
        clients: client id to the state that the SuperLink reports: `registered` (never connected), `online` or
            `offline`; `unknown` without a report.
        last: record of the last finished round; None before the first one.
        rounds: number of rounds of the run.
    """

    run: str
    services: dict[str, bool]
    clients: dict[str, str]
    last: RoundRecord | None
    rounds: int


def status(directory: Path, out: Path) -> Status:
    """Return which services are running, which clients are connected, and how many rounds are finished.

    Args:
        directory: the server's directory.
        out: run directory.

    Raises:
        UserError: the directory is not a server's.
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
    """Return the status of each node by its public key, or nothing if the SuperLink does not answer."""
    try:
        socket.create_connection(("127.0.0.1", deployment.superlink_port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return {}  # before Flower, which takes seconds to import, is needed
    link = superlink(directory, deployment)
    return {node.public_key.decode(): node.status for node in link.nodes()} if link.is_up() else {}


def stop_all(directory: Path) -> list[str]:
    """Stop the server, the SuperLink and nginx. Return the names of those that were running.

    Raises:
        UserError: the directory is not a server's.
    """
    names.read(directory, names.DEPLOYMENT, Deployment)
    return [name for name in ("server", "nginx", "superlink") if stop(directory, name)]


def default_out(directory: Path) -> Path:
    """Return the default run directory of a server, given the server's directory.

    Raises:
        UserError: the server's directory does not exist.
    """
    if not directory.is_dir():
        raise UserError(
            f"{directory} is not a directory. Give the server's directory that `fedcollm deploy init` wrote."
        )
    return directory / "run"
