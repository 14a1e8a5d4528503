"""`fedcollm deploy status` and `stop`. Both are fast: the server writes what it does to a file, and they read it."""

import contextlib
import json
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cryptography import x509
from pydantic import TypeAdapter, ValidationError

from fedcollm.deploy import directories as names
from fedcollm.deploy.directories import Deployment
from fedcollm.deploy.processes import running, stop
from fedcollm.errors import UserError
from fedcollm.messages import RoundRecord, readable
from fedcollm.runs.directory import CONFIG, parse_config, read_records

FILE = "status.json"
_STOP_SECONDS = 120.0  # a server that is killed counts as failed, and systemd would start it again
_UNSAID = "it ended without saying why: it was killed, or the machine went down"
_FRESH_SECONDS = 30.0  # after which what the server wrote is old


@dataclass(frozen=True)
class Seen:
    """What the server knows about one client.

    Attributes:
        state: `online`, `offline`, `never seen`, `not admitted`, or `unknown` while the server is stopped.
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
        round_seconds: how long the last round of this process took, in seconds; None before it.
        failed: how often a round failed and was tried again, since the run began.
        reason: why the last round failed, or why the server stopped; empty if neither.
        trouble: why a service can't be started at the moment; empty if both run.
    """

    phase: str = "not started"
    round: int = 0
    clients: Mapping[str, Seen] = field(default_factory=dict[str, Seen])
    updated: float = 0.0
    seconds_left: float | None = None
    epsilon: float | None = None
    round_seconds: float | None = None
    failed: int = 0
    reason: str = ""
    trouble: str = ""


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
        expires: when the server's certificate expires, in seconds since 1970; None if it can't be read.
    """

    run: str
    roster: tuple[int, int]
    services: Mapping[str, bool]
    now: Written
    last: RoundRecord | None
    rounds: int
    expires: float | None = None

    def to_json(self) -> str:
        """Return the status as one line of JSON."""
        return json.dumps(asdict(self))

    @property
    def healthy(self) -> bool:
        """Whether everything runs and the server has written its state lately."""
        return not self.problems()

    def problems(self) -> list[str]:
        """Return what is wrong, a sentence each."""
        down = [f"{name} is not running" for name, runs in self.services.items() if not runs]
        if self.services["server"] and time.time() - self.now.updated >= _FRESH_SECONDS:
            down.append(f"the server has written nothing for {time.time() - self.now.updated:.0f} s")
        return down + ([self.now.trouble] if self.now.trouble and self.services["server"] else [])


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
        left = {name: replace(seen, state="unknown" if seen.last_seen else seen.state)
                for name, seen in now.clients.items()}  # fmt: skip
        reason = now.reason or ("" if phase == now.phase else _UNSAID)
        now = replace(now, phase=phase, clients=left, seconds_left=None, reason=reason, trouble="")
    clients = {name: now.clients.get(name, Seen()) for name in deployment.clients}
    clients |= {name: Seen("not admitted") for name in deployment.invited if name not in clients}
    records = read_records(out)
    counts = len(deployment.clients), len(deployment.invited)
    rounds, last = parse_config(directory / CONFIG).federation.rounds, records[-1] if records else None
    now = replace(now, clients=clients)
    return Status(deployment.run, counts, services, now, last, rounds, _expires(directory / names.CERTIFICATE))


def _expires(certificate: Path) -> float | None:
    try:
        return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc.timestamp()
    except (OSError, ValueError):
        return None


def note_failure(directory: Path, reason: str) -> None:
    """Note that a round has failed, which is tried again. The server must not write meanwhile.

    Args:
        directory: the server's directory.
        reason: why it failed.
    """
    now = read_written(directory)
    phase = "waiting to try the round again"
    write(directory, replace(now, phase=phase, failed=now.failed + 1, reason=reason, updated=time.time()))


@contextlib.contextmanager
def note_stop(directory: Path) -> Generator[None, None, None]:
    """Note why the block ends if it does not end well."""
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        write(directory, replace(read_written(directory), reason="it was stopped, by Ctrl-C or `fedcollm deploy stop`"))
        raise
    except Exception as error:
        write(directory, replace(read_written(directory), reason=readable(f"{error or type(error).__name__}")))
        raise


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
    patience = {"server": _STOP_SECONDS, "nginx": 10.0, "superlink": 10.0}
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
