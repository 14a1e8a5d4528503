"""Clients over a network: one thread per client, each with a deadline."""

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedcollm.errors import RefusalError, UserError
from fedcollm.federation.download_format import most_answered
from fedcollm.messages import (
    Answer,
    ClientUpdate,
    Failure,
    FinishRequest,
    PhaseAnswer,
    Request,
    TrainRequest,
)
from fedcollm.transports.wire import decode, encode, longest_message


class RunLostError(UserError):
    """The SuperLink can't be reached any more, or has ended the run. A new run there goes on from the last state."""


class Connection(Protocol):
    """A connection to nodes, which have numbers. A method that raises a ConnectionError can be called again."""

    def nodes(self) -> list[Any]:
        """Return the connected nodes, each with `public_key`, `node_id` and `last_activated_at`."""
        ...

    def send(self, node: int, data: bytes, seconds: float) -> str:
        """Send bytes to a node, which has so many seconds to fetch them; return the message's id."""
        ...

    def receive(self, names: Sequence[str], limit_bytes: int, seconds: float) -> bytes | None:
        """Return the first answer to any of these messages, or None if there is none yet.

        An answer that was announced has so many seconds to arrive whole.
        """
        ...


@dataclass(frozen=True)
class Deadlines:
    """How long the server waits, in seconds.

    Attributes:
        training: wait for a client's update or, under secure aggregation, for the keys that it sends after training.
        phase: wait for a client's answer in a later phase of secure aggregation.
        absence: wait for a disconnected client to come back. One that was away for so long is waited for again only as
            long as others have not answered either.
    """

    training: float = 3600.0
    phase: float = 120.0
    absence: float = 60.0


def _all_keys() -> None:
    """Return None: no node was removed."""


@dataclass
class FlowerTransport:
    """A transport that reaches the clients through a Flower SuperLink. It never waits longer than its deadlines.

    A client that reconnects before the deadline gets its request again. It then repeats its answer, trains again, or
    refuses, if it has lost the secrets of the session.

    Attributes:
        run: connection to the clients' nodes.
        keys: client id to the public key of the client's node, in Flower's format.
        deadlines: how long to wait for an answer.
        longest_poll: longest time between two polls for an answer, in seconds.
        admitted: returns the public keys of the nodes that may take part at the moment, or None if all may. A client
            whose key is not among them is lost at once.
    """

    run: Connection
    keys: Mapping[str, bytes] = field(repr=False)
    deadlines: Deadlines = field(default_factory=Deadlines)
    longest_poll: float = 0.5
    admitted: Callable[[], Collection[bytes] | None] = field(default=_all_keys, repr=False)
    _limit_bytes: int = field(init=False, repr=False, default_factory=longest_message)
    _nodes: dict[bytes, Any] = field(init=False, repr=False, default_factory=dict[bytes, Any])
    _admitted: Collection[bytes] | None = field(init=False, repr=False, default=None)
    _absent: set[str] = field(init=False, repr=False, default_factory=set[str])
    _looked: float = field(init=False, repr=False, default=float("-inf"))
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def clients(self) -> Sequence[str]:
        """Return the ids of all clients of the federation, connected or not."""
        return list(self.keys)

    def ask(self, requests: Mapping[str, Request | FinishRequest]) -> Iterator[Answer]:
        """Send each client its request. Yield the answers as they arrive, and a Failure for each client without one."""
        sizes = [most_answered(request.adapter) for request in requests.values() if isinstance(request, TrainRequest)]
        self._limit_bytes = longest_message(max(sizes)) if sizes else self._limit_bytes
        stopped, pending = threading.Event(), set(requests)
        with ThreadPoolExecutor(max_workers=max(1, len(requests))) as pool:
            try:
                waiting = {
                    pool.submit(self._ask, client, request, stopped, pending): client
                    for client, request in requests.items()
                }
                for future, client in waiting.items():
                    future.add_done_callback(lambda _, client=client: pending.discard(client))
                for answer in as_completed(waiting):
                    yield answer.result()
            finally:
                stopped.set()

    def _ask(
        self, client: str, request: Request | FinishRequest, stopped: threading.Event, pending: Collection[str]
    ) -> Answer:
        """Return one client's answer, or a Failure if it does not come.

        Args:
            client: the client's id.
            request: what the client is asked.
            stopped: is set when nobody is waited for any more.
            pending: ids of the clients that have not answered.
        """
        seconds = self.deadlines.training if isinstance(request, TrainRequest) else self.deadlines.phase
        call = _Call(self.run, encode(request), self._limit_bytes, time.monotonic() + seconds)
        seen, pause, trouble = time.monotonic(), 0.02, ""
        while (now := time.monotonic()) < call.deadline and not stopped.is_set():
            try:
                node = self._node(client)
                if node is not None:
                    seen = now
                    self._absent.discard(client)
                    reply = call.advance(node)
                    if reply is not None:
                        return self._checked(client, reply)
                elif now - seen > self.deadlines.absence or self._absent.issuperset({client, *pending}):
                    self._absent.add(client)
                    return Failure(client, f"not connected for {self.deadlines.absence:g} s")
            except ConnectionError as error:
                seen, trouble = now, f"; the SuperLink can't be reached ({error})"
                call.activation = ""  # the request may have been lost on its way: send it again
            except RefusalError as error:
                return Failure(client, str(error))
            stopped.wait(pause)
            pause = min(pause * 1.5, self.longest_poll)
        return Failure(client, f"no answer within {seconds:g} s{trouble}")

    def _node(self, client: str) -> Any:
        """Return a client's node, or None if it is not connected; the nodes are listed again after half a second.

        Raises:
            RefusalError: the client was removed.
        """
        with self._lock:
            if time.monotonic() - self._looked > 0.5:
                self._admitted = self.admitted()
                self._nodes = {node.public_key: node for node in self.run.nodes()}
                self._looked = time.monotonic()
            if self._admitted is not None and self.keys[client] not in self._admitted:
                raise RefusalError("removed from the roster")
            return self._nodes.get(self.keys[client])

    def connected(self) -> set[str]:
        """Return the ids of the admitted clients that are connected at the moment; none while nobody can be asked."""
        there: set[str] = set()
        for client in self.keys:
            with contextlib.suppress(ConnectionError, RefusalError):
                if self._node(client) is not None:
                    there.add(client)
        return there

    def _checked(self, client: str, reply: bytes) -> Answer:
        """Return the answer in a client's reply, or a Failure if it is not an answer of this client."""
        try:
            answer = decode(reply, self._limit_bytes)
        except RefusalError as error:
            return Failure(client, str(error))
        except Exception as error:  # a faulty answer loses its client, not the server
            return Failure(client, f"its answer can't be handled ({type(error).__name__})")
        if not isinstance(answer, (ClientUpdate, PhaseAnswer, Failure)):
            return Failure(client, "sent a request instead of an answer")
        if answer.client != client:
            return Failure(client, f"speaks for client {answer.client[:60]!r}")
        return answer


@dataclass
class _Call:
    """One request to one client. It is sent again whenever the client or the SuperLink has come back.

    Attributes:
        run: connection to the nodes.
        data: the request.
        limit_bytes: size of the longest answer to accept.
        deadline: when the server stops waiting, by the monotonic clock, in seconds.
        sent: ids of the messages that the request was sent in.
        activation: when the node that the request was last sent to had connected; empty if it must be sent.
    """

    run: Connection
    data: bytes
    limit_bytes: int
    deadline: float
    sent: list[str] = field(default_factory=list[str])
    activation: str = ""

    def advance(self, node: Any) -> bytes | None:
        """Send the request to a node if necessary; return the answer, or None if there is none yet."""
        if node.last_activated_at != self.activation:
            self.sent.append(self.run.send(node.node_id, self.data, self.deadline - time.monotonic()))
            self.activation = node.last_activated_at
        return self.run.receive(self.sent, self.limit_bytes, self.deadline - time.monotonic())
