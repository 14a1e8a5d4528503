"""`fedcollm deploy server`: run the rounds of a deployment with its clients."""

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from fedcollm.config import RunConfig
from fedcollm.deploy import directories as names
from fedcollm.deploy.admission import Admitted, grant_access, publish, reading
from fedcollm.deploy.directories import Deployment
from fedcollm.deploy.page import address, served
from fedcollm.deploy.quorum import Quorum, RosterChangedError, check_roster
from fedcollm.deploy.status import note_failure, note_stop
from fedcollm.deploy.watch import Watch, WatchedTransport
from fedcollm.deploy.watchdog import kept_running
from fedcollm.errors import RoundFailedError, UserError
from fedcollm.messages import Failure, FinishRequest, RoundRecord, readable
from fedcollm.progress import say
from fedcollm.runs import directory as run_directory
from fedcollm.runs.build import Inputs, Remote
from fedcollm.runs.runner import rounds
from fedcollm.storage import locked, make_directory, write_atomically, writing
from fedcollm.transports.flower.transport import Deadlines, FlowerTransport, RunLostError

_TOLD = "told.json"  # in state/: the clients that know that the run is finished
_ROSTER_SECONDS = 2.0
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 60.0, 600.0  # before a failed round is tried again


@dataclass(frozen=True)
class Serving:
    """A server that is connected to its clients.

    Attributes:
        config: configuration of the run.
        remote: connection to the clients.
        transport: the same connection, for messages that are no requests of a round.
        watch: what the server does.
        changed: returns whether the operator has changed the roster since.
    """

    config: RunConfig
    remote: Remote
    transport: WatchedTransport
    watch: Watch
    changed: Callable[[], bool]


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
    with _held(directory) as config, _connected(directory, config) as connected:
        yield connected


@contextlib.contextmanager
def _held(directory: Path) -> Generator[RunConfig, None, None]:
    """Check a server's directory, and let no other server use it. Yield the configuration.

    Raises:
        UserError: a file is missing, or another server runs.
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
            yield config
        finally:
            number.unlink(missing_ok=True)


@contextlib.contextmanager
def _connected(directory: Path, config: RunConfig) -> Generator[Serving, None, None]:
    """Put the newest roster into force, and connect to its clients.

    Raises:
        UserError: the roster is too short, or a program can't be started.
    """
    with reading(directory) as deployment:
        check_roster(config, deployment.clients)
        clients = publish(directory, deployment)
    if waiting := [name for name in deployment.invited if name not in clients]:
        say(f"invited, but not admitted: {', '.join(waiting)}")
    nodes = {client: keys.node.encode() for client, keys in clients.items()}
    waits, admitted = config.federation.deadlines, Admitted(directory)
    deadlines = Deadlines(waits.training, waits.phase, waits.absence)

    def changed() -> bool:
        keys = admitted()
        return keys is not None and set(keys) != set(nodes.values())

    with kept_running(directory, deployment) as (link, watchdog):
        with reading(directory) as newest:  # it may have been changed while they started
            grant_access(directory, newest)
        watch = Watch(directory, config.federation.rounds, nodes, lambda: watchdog.trouble)
        with link.run() as run, watch.running(run):
            inner = FlowerTransport(run, nodes, deadlines, admitted=admitted)
            quorum = Quorum(config, inner.connected, changed, lambda text: watch.change(phase=text))
            transport = WatchedTransport(inner, watch, quorum)
            roster = names.public_keys({client: keys.signing for client, keys in clients.items()})
            yield Serving(config, Remote(transport, deployment.run, roster), transport, watch, changed)


def run_rounds(directory: Path, out: Path, page: str | None = None) -> Iterator[RoundRecord]:
    """Run the rounds with the deployment's clients, and yield their records. Tell the clients when the run is finished.

    A run that an earlier process began is resumed. A round that fails is tried again, for as long as it takes. When the
    operator has changed the roster, the next round uses the new one.

    Args:
        directory: the server's directory.
        out: run directory.
        page: HOST:PORT of the status page; None for none.

    Raises:
        UserError: the server can't be started, or something is wrong that waiting does not mend.
    """
    if page is not None:
        address(page)  # fails here rather than when the services run
    with _held(directory) as config, served(directory, out, page), note_stop(directory):
        done, pause, again = -1, _PAUSE_SECONDS, False
        while True:
            try:
                for record in _until_changed(directory, out, config, again):
                    again = True
                    if record.round > done:
                        done, pause = record.round, _PAUSE_SECONDS
                        yield record
                return
            except RosterChangedError:
                say("the roster was changed: rounds go on with the new one")
            except (RoundFailedError, RunLostError) as error:
                say(f"{error} The server tries again in {pause:g} s.", logging.WARNING)
                note_failure(directory, readable(str(error)))
                threading.Event().wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            again = True
            _wait_for_roster(directory, config)


def _until_changed(directory: Path, out: Path, config: RunConfig, again: bool) -> Iterator[RoundRecord]:
    """Yield the records of the run, from its first one on, and tell the clients when it is finished.

    Args:
        directory: the server's directory.
        out: run directory.
        config: the run's configuration.
        again: whether the services have run before, so that what keeps them from it may pass.

    Raises:
        RosterChangedError: the roster was changed, and there are rounds left.
        RoundFailedError: a round failed.
        RunLostError: the SuperLink can't be reached, or has ended the run.
    """
    with contextlib.ExitStack() as stack:
        try:
            connected = stack.enter_context(_connected(directory, config))
        except httpx.HTTPError as error:
            raise RunLostError(f"the SuperLink can't be reached ({error}).") from error
        except UserError as error:
            if not again:
                raise
            raise RunLostError(str(error)) from error
        resume = (out / run_directory.CONFIG).exists()
        for record in rounds(config, out, Inputs(remote=connected.remote), resume=resume):
            connected.watch.recorded(record)
            yield record
            if record.round < config.federation.rounds and connected.changed():
                raise RosterChangedError("the roster was changed")
        tell(directory, out, connected)


def _wait_for_roster(directory: Path, config: RunConfig) -> None:
    """Return once the roster is long enough for a round, and say what is missing whenever that changes."""
    said = ""
    while True:
        with reading(directory) as deployment:
            try:
                return check_roster(config, deployment.clients)
            except UserError as error:
                reason = str(error)
        if reason != said:
            say(f"{reason} The server waits.", logging.WARNING)
        said = reason
        threading.Event().wait(_ROSTER_SECONDS)


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
