"""`fedcollm deploy status` and `stop`. Both are fast: the server writes what it does to a file, and they read it."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedcollm.deploy import directories as names
from fedcollm.deploy.directories import Deployment
from fedcollm.deploy.services import running, stop
from fedcollm.errors import UserError
from fedcollm.messages import RoundRecord
from fedcollm.runs.directory import CONFIG, parse_config, read_records

FILE = "status.json"
_STOP_SECONDS = 30.0  # a server that is killed counts as failed, and systemd would start it again
_FRESH_SECONDS = 30.0  # after which what the server wrote is old


@dataclass(frozen=True)
class Seen:
    """What the server knows about one client.

    Attributes:
        state: `online`, `offline`, or `never seen`.
        last_seen: when it was last connected, in seconds since 1970; None if never.
        lost: why it was lost in the present round or the last one; empty if it was not.
    """

    state: str = "never seen"
    last_seen: float | None = None
    lost: str = ""


@dataclass(frozen=True)
class Written:
    """What the server writes about itself.

    Attributes:
        phase: what it does, in a few words.
        round: index of the round that it is in, or was last in.
        clients: client id to what is known about it.
        updated: when this was written, in seconds since 1970.
        seconds_left: estimate of the time to the end of the run; None without a finished round.
        epsilon: ε spent so far; None without differential privacy.
    """

    phase: str = "not started"
    round: int = 0
    clients: Mapping[str, Seen] = field(default_factory=dict[str, Seen])
    updated: float = 0.0
    seconds_left: float | None = None
    epsilon: float | None = None


_WRITTEN = TypeAdapter(Written)


@dataclass(frozen=True)
class Status:
    """The state of a deployment.

    Attributes:
        run: identity of the run.
        roster: number of clients that are on the roster, and that were invited.
        services: name of each service to whether it is running.
        now: what the server does, by what it last wrote.
        last: record of the last finished round; None before the first one.
        rounds: number of rounds of the run.
    """

    run: str
    roster: tuple[int, int]
    services: Mapping[str, bool]
    now: Written
    last: RoundRecord | None
    rounds: int

    def to_json(self) -> str:
        """Return the status as one line of JSON."""
        return json.dumps(asdict(self))

    @property
    def healthy(self) -> bool:
        """Whether the server runs and has written its state lately."""
        return self.services["server"] and time.time() - self.now.updated < _FRESH_SECONDS


def write(directory: Path, state: Written) -> None:
    """Write what the server does. A file that can't be written is left out, since rounds do not depend on it."""
    from fedcollm.storage import write_atomically

    try:
        write_atomically(directory / "state" / FILE, json.dumps(asdict(state)), mode=0o600)
    except OSError:
        return


def read_written(directory: Path) -> Written:
    """Return what the server wrote last; without a readable file, that it has not started."""
    try:
        return _WRITTEN.validate_json((directory / "state" / FILE).read_bytes())
    except (OSError, ValidationError):
        return Written()


def status(directory: Path, out: Path) -> Status:
    """Return which services are running, which clients are connected, and how far the run is.

    Args:
        directory: the server's directory.
        out: run directory.

    Raises:
        UserError: the directory is not a server's.
    """
    deployment = names.read(directory, names.DEPLOYMENT, Deployment)
    services = {name: running(directory, name) for name in ("server", "superlink", "nginx")}
    now = read_written(directory)
    if not services["server"]:
        phase = now.phase if now.phase in ("finished", "not started") else f"stopped while {now.phase}"
        left = {name: Seen("unknown", seen.last_seen, seen.lost) for name, seen in now.clients.items()}
        now = Written(phase, now.round, left, now.updated, None, now.epsilon)
    clients = {name: now.clients.get(name, Seen()) for name in deployment.clients}
    now = Written(now.phase, now.round, clients, now.updated, now.seconds_left, now.epsilon)
    records = read_records(out)
    counts = len(deployment.clients), len(deployment.invited)
    rounds = parse_config(directory / CONFIG).federation.rounds
    return Status(deployment.run, counts, services, now, records[-1] if records else None, rounds)


def estimate(records: Iterable[RoundRecord], rounds: int, seconds: Iterable[float]) -> float | None:
    """Return the seconds that the rest of a run takes, by the mean of its finished rounds.

    Args:
        records: the records of the finished rounds, starting with round 0.
        rounds: number of rounds of the run.
        seconds: wall-clock seconds of each finished round of this process.

    >>> estimate([RoundRecord(0), RoundRecord(1)], 4, [20.0])
    60.0
    """
    done, spent = max((record.round for record in records), default=0), list(seconds)
    return (rounds - done) * sum(spent) / len(spent) if spent else None


def stop_all(directory: Path) -> list[str]:
    """Stop the server, the SuperLink and nginx. Return the names of those that were running.

    Raises:
        UserError: the directory is not a server's.
    """
    names.read(directory, names.DEPLOYMENT, Deployment)
    patience = {"server": _STOP_SECONDS, "nginx": 5.0, "superlink": 5.0}
    return [name for name, seconds in patience.items() if stop(directory, name, seconds)]


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
