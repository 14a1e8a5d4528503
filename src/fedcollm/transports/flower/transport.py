"""Clients over a network: one thread a client, each with its deadline."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedcollm.errors import RefusalError
from fedcollm.messages import Answer, ClientUpdate, Failure, PhaseAnswer, Request, TrainRequest, adapter_bytes
from fedcollm.transports.wire import decode, encode, longest_message


class Connection(Protocol):
    """A way to nodes by number; every method may raise a ConnectionError that passes."""

    def nodes(self) -> list[Any]:
        """Connected nodes, each with `public_key`, `node_id` and `last_activated_at`."""
        ...

    def send(self, node: int, data: bytes, seconds: float) -> str:
        """Send bytes that must be fetched within so many seconds; returns the message's id."""
        ...

    def receive(self, names: Sequence[str], limit_bytes: int) -> bytes | None:
        """The first answer to one of these messages, if there is one."""
        ...


@dataclass(frozen=True)
class Deadlines:
    """How long the server waits, in seconds.

    Attributes:
        training: for a client's update, or its keys where it trains first.
        phase: for a client's answer in a later phase of secure aggregation.
        absence: for a client that is not connected to come back.
    """

    training: float = 3600.0
    phase: float = 120.0
    absence: float = 60.0


@dataclass
class FlowerTransport:
    """The server's way to its clients, by a run of a Flower SuperLink. It never waits longer than a deadline.

    A client that comes back before the deadline gets its request again: it answers as before, trains anew, or refuses
    a session whose secrets it has lost.

    Attributes:
        run: the connection.
        keys: client id to the public key of its node, as Flower writes it.
        deadlines: how long to wait.
        longest_poll: seconds between two looks for an answer, at most.
    """

    run: Connection
    keys: Mapping[str, bytes] = field(repr=False)
    deadlines: Deadlines = field(default_factory=Deadlines)
    longest_poll: float = 0.5
    _limit_bytes: int = field(init=False, repr=False, default_factory=longest_message)
    _nodes: dict[bytes, Any] = field(init=False, repr=False, default_factory=dict)
    _looked: float = field(init=False, repr=False, default=float("-inf"))
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def clients(self) -> Sequence[str]:
        """Ids of all clients of the federation, connected or not."""
        return list(self.keys)

    def ask(self, requests: Mapping[str, Request]) -> Iterator[Answer]:
        """Send each client its request; yield its answer, or why there is none, as they come."""
        sizes = [adapter_bytes(request.adapter) for request in requests.values() if isinstance(request, TrainRequest)]
        self._limit_bytes = longest_message(max(sizes)) if sizes else self._limit_bytes
        stopped = threading.Event()
        with ThreadPoolExecutor(max_workers=max(1, len(requests))) as pool:
            try:
                waiting = [pool.submit(self._ask, client, request, stopped) for client, request in requests.items()]
                for answer in as_completed(waiting):
                    yield answer.result()
            finally:
                stopped.set()

    def _ask(self, client: str, request: Request, stopped: threading.Event) -> Answer:
        """One client's answer."""
        seconds = self.deadlines.training if isinstance(request, TrainRequest) else self.deadlines.phase
        talk = _Talk(self.run, encode(request), self._limit_bytes, time.monotonic() + seconds)
        seen, pause, trouble = time.monotonic(), 0.02, ""
        while (now := time.monotonic()) < talk.deadline and not stopped.is_set():
            try:
                node = self._node(client)
                if node is not None:
                    seen = now
                    reply = talk.go_on(node)
                    if reply is not None:
                        return self._checked(client, reply)
                elif now - seen > self.deadlines.absence:
                    return Failure(client, f"not connected for {self.deadlines.absence:g} s")
            except ConnectionError as error:
                seen, trouble = now, f"; the SuperLink can't be reached ({error})"
                talk.activation = ""  # what was on its way may be lost: send it again
            except RefusalError as error:
                return Failure(client, str(error))
            stopped.wait(pause)
            pause = min(pause * 1.5, self.longest_poll)
        return Failure(client, f"no answer within {seconds:g} s{trouble}")

    def _node(self, client: str) -> Any:
        """A client's node, or None if it is not connected; not older than half a second."""
        with self._lock:
            if time.monotonic() - self._looked > 0.5:
                self._nodes = {node.public_key: node for node in self.run.nodes()}
                self._looked = time.monotonic()
            return self._nodes.get(self.keys[client])

    def _checked(self, client: str, reply: bytes) -> Answer:
        """An answer that is one, and is this client's own.

        Raises:
            RefusalError: it can't be read.
        """
        answer = decode(reply, self._limit_bytes)
        if not isinstance(answer, (ClientUpdate, PhaseAnswer, Failure)):
            return Failure(client, "sent a request instead of an answer")
        if answer.client != client:
            return Failure(client, f"speaks for client {answer.client[:60]!r}")
        return answer


@dataclass
class _Talk:
    """One request to one client, sent again whenever the client or the SuperLink has come back."""

    run: Connection
    data: bytes
    limit_bytes: int
    deadline: float
    sent: list[str] = field(default_factory=list)
    activation: str = ""

    def go_on(self, node: Any) -> bytes | None:
        """The answer, if there is one now."""
        if node.last_activated_at != self.activation:
            self.sent.append(self.run.send(node.node_id, self.data, self.deadline - time.monotonic()))
            self.activation = node.last_activated_at
        return self.run.receive(self.sent, self.limit_bytes)
