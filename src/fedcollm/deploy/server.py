"""`fedcollm deploy server`: run the rounds of a deployment with its clients."""

import contextlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path

from fedcollm.config import RunConfig
from fedcollm.deploy import directories as names
from fedcollm.deploy.directories import Deployment
from fedcollm.deploy.services import kept_running
from fedcollm.errors import UserError
from fedcollm.messages import RoundRecord
from fedcollm.runs import directory as run_directory
from fedcollm.runs.build import Inputs, Remote
from fedcollm.runs.runner import rounds
from fedcollm.storage import locked, writing
from fedcollm.transports.flower.transport import Deadlines, FlowerTransport


@contextlib.contextmanager
def serving(directory: Path) -> Generator[tuple[RunConfig, Remote], None, None]:
    """Start the SuperLink and the proxy; both keep running when the context ends.

    Args:
        directory: the server's directory.

    Yields:
        (configuration of the run, connection to the clients).

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
    for name in (names.SERVER_KEY, names.SECRET):
        names.check_private(directory / name)
    with writing(directory):
        (directory / "state").mkdir(exist_ok=True, mode=0o700)
        (directory / "logs").mkdir(exist_ok=True)
    with locked(directory / "state"):
        number = directory / "state" / "server.pid"
        number.write_text(str(os.getpid()), encoding="utf-8")
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
    """Run the rounds with the deployment's clients, and yield their records.

    A run that an earlier process began is resumed.

    Args:
        directory: the server's directory.
        out: run directory.

    Raises:
        UserError: the server can't be started, or a round failed.
    """
    with serving(directory) as (config, remote):
        resume = (out / run_directory.CONFIG).exists()
        yield from rounds(config, out, Inputs(remote=remote), resume=resume)
