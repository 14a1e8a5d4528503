"""The server's view of its clients, and the file that shows it: phase, last seen, lost, time left."""

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedcollm.deploy.quorum import Quorum
from fedcollm.deploy.status import Seen, Written, estimate, read_written, write
from fedcollm.messages import Answer, Failure, FinishRequest, Request, RoundRecord, TrainRequest, readable
from fedcollm.progress import current
from fedcollm.transports.flower.transport import Connection, FlowerTransport

_SECONDS = 2.0
_MISSED = 2  # heartbeats, after which the SuperLink counts a node as lost
_PHASES = {
    "share": "secure aggregation: shares of the secrets",
    "mask": "secure aggregation: masked updates",
    "reveal": "secure aggregation: shares that a client can't open",
    "confirm": "secure aggregation: survivors",
    "unmask": "secure aggregation: opening the sum",
}


@dataclass
class Watch:
    """What the server does at the moment. Its state is written to a file whenever it changes, and every two seconds.

    Attributes:
        directory: the server's directory.
        rounds: number of rounds of the run.
        keys: client id to the public key of the client's node.
        trouble: returns why a service can't be started at the moment; empty if all run.
    """

    directory: Path
    rounds: int
    keys: Mapping[str, bytes] = field(repr=False)
    trouble: Callable[[], str] = field(default=str, repr=False)
    state: Written = field(init=False)
    _records: list[RoundRecord] = field(init=False, default_factory=list[RoundRecord], repr=False)
    _seconds: list[float] = field(init=False, default_factory=list[float], repr=False)
    _trained: bool = field(init=False, default=False)
    _began: float = field(init=False, default_factory=time.monotonic)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        before = read_written(self.directory)
        clients = {client: before.clients.get(client, Seen()) for client in self.keys}
        clients = {client: replace(seen, state="offline" if seen.last_seen else Seen().state, lost="")
                   for client, seen in clients.items()}  # fmt: skip
        self.state = Written("starting", clients=clients, failed=before.failed, reason=before.reason)

    def change(self, **changes: Any) -> None:
        """Change the state and write it."""
        with self._lock:
            self.state = replace(self.state, **changes, trouble=self.trouble(), updated=time.time())
            write(self.directory, self.state)

    def asked(self, requests: Mapping[str, Request | FinishRequest]) -> None:
        """Note what clients are asked."""
        request = next(iter(requests.values()), None)
        if isinstance(request, TrainRequest):
            if request.round_index != self.state.round:
                self._lose(dict.fromkeys(self.keys, ""))
            current.round, self._trained = request.round_index, True
            phase = "clients keep an adapter of their own" if request.keep else "clients train"
            self.change(phase=phase, round=request.round_index)
        elif isinstance(request, FinishRequest):
            self.change(phase="telling the clients that the run is finished")
        elif request is not None:
            self.change(phase=_PHASES.get(request.phase, "secure aggregation"))

    def answered(self, answer: Answer) -> None:
        """Note one client's answer."""
        if isinstance(answer, Failure):
            self._lose({answer.client: readable(answer.reason)})
        else:
            self._see({answer.client: time.time()})

    def recorded(self, record: RoundRecord) -> None:
        """Note the record of a finished round."""
        now = time.monotonic()
        if self._trained:  # and it is not one of an earlier process
            self._seconds.append(now - self._began)
            self.state = replace(self.state, round_seconds=now - self._began, reason="")
        self._began, self._trained = now, False
        self._records.append(record)
        left = estimate(self._records, self.rounds, self._seconds)
        self._lose({client: readable(reason) for client, reason in record.lost.items() if client in self.keys})
        self.change(phase="between rounds", round=record.round, seconds_left=left, epsilon=record.epsilon)

    def _lose(self, reasons: Mapping[str, str]) -> None:
        with self._lock:
            known = dict(self.state.clients)
            for client, reason in reasons.items():
                known[client] = replace(known.get(client, Seen()), lost=reason)
            self.state = replace(self.state, clients=known)

    def _see(self, heard: Mapping[str, float]) -> None:
        """Note who is online, by client id, and when each was heard of, in seconds since 1970."""
        with self._lock:
            known = dict(self.state.clients)
            for client, moment in heard.items():
                before = known.get(client, Seen())
                known[client] = Seen("online", max(moment, before.last_seen or 0.0), before.lost)
            self.state = replace(self.state, clients=known)

    def look(self, connection: Connection) -> None:
        """Ask the SuperLink once which clients are connected."""
        with contextlib.suppress(Exception):  # whoever asks clients will meet the same error, and say it
            there = {node.public_key: _heard(node) for node in connection.nodes()}
            online = {client: there[key] for client, key in self.keys.items() if key in there}
            self._see(online)
            with self._lock:
                clients = {
                    client: replace(seen, state="offline") if client not in online and seen.last_seen else seen
                    for client, seen in self.state.clients.items()
                }
                self.state = replace(self.state, clients=clients)

    @contextlib.contextmanager
    def running(self, connection: Connection) -> Generator[None, None, None]:
        """Look and write every two seconds inside the block."""
        stopped = threading.Event()

        def watch() -> None:
            while not stopped.wait(_SECONDS):
                self.look(connection)
                self.change()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()


def _heard(node: Any) -> float:
    """Return when a node's last heartbeat came, in seconds since 1970: it counts as connected for two more of them."""
    return min(time.time(), float(node.online_until) - _MISSED * float(node.heartbeat_interval))


@dataclass(frozen=True)
class WatchedTransport:
    """A transport that waits until enough clients are there for a round, and tells a watch what is asked and answered.

    Attributes:
        inner: the transport that reaches the clients.
        watch: is told.
        quorum: the wait; None to wait for nobody.
    """

    inner: FlowerTransport
    watch: Watch = field(repr=False)
    quorum: Quorum | None = None

    def clients(self) -> Sequence[str]:
        """Return the ids of the clients."""
        return self.inner.clients()

    def ask(self, requests: Mapping[str, Request | FinishRequest]) -> Iterator[Answer]:
        """Send each client its request, and yield the answers as they arrive.

        Raises:
            RosterChangedError: the roster was changed while too few clients were connected for a round.
        """
        first = next(iter(requests.values()), None)
        if self.quorum is not None and isinstance(first, TrainRequest):
            self.quorum.wait_for(first, list(requests))
        self.watch.asked(requests)
        for answer in self.inner.ask(requests):
            self.watch.answered(answer)
            yield answer
        self.watch.change(phase="the server works")
