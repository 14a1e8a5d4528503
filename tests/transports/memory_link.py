"""A network in memory, for tests: a `Connection` whose other ends are clients in threads, and which can fail.

Every message is a real Flower message, taken apart and put together by Flower's own code. Time is the link's own: it
runs fast, and it leaps where everybody that the server still waits for will stay silent. Without a leap, the shortest
deadline takes 25 minutes of the machine's time: so none passes because a machine is slow, and no test waits for one.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity
from tests.conftest import PATIENCE_SECONDS

from fedcollm.messages import Answer, Request, TrainRequest
from fedcollm.transports.endpoint import ClientEndpoint
from fedcollm.transports.flower import transport as flower
from fedcollm.transports.flower.messages import fetch, pack, request, send
from fedcollm.transports.flower.transport import Deadlines, FlowerTransport
from fedcollm.transports.wire import decode, longest_message

_RUN, _TASK, _SERVER = 7, 8, 1
_FASTER, _LEAP = 200, 50_000.0
DEADLINES = Deadlines(training=900_000, phase=800_000, absence=300_000)

#: Client id to a process's fresh memory.
Memories = Mapping[str, Callable[[], ClientEndpoint]]


class Fault(Enum):
    """What befalls a client when a request arrives."""

    DIES = "dies on arrival, and stays away"
    DIES_AFTER = "does what it is asked, and dies before it answers"
    RESTARTS = "dies on arrival, and comes back without memory"
    RESTARTS_AFTER = "does what it is asked, dies before it answers, and comes back without memory"
    RECONNECTS = "does what it is asked, and loses its connection and its answer, but not its memory"
    LATE = "answers when the server has given up waiting"
    HELD = "answers when the test lets it"


class ServerKilledError(Exception):
    """The server's process ends here."""


@dataclass
class _Letter:
    head: Any
    tree: Any
    parts: dict[str, bytes]
    message: str
    incarnation: int


@dataclass
class _Process:
    """One client: a thread that outlives the processes that it plays."""

    name: str
    node: int
    memory: Callable[[], ClientEndpoint]
    answering: ClientEndpoint
    inbox: "queue.Queue[_Letter]" = field(default_factory=queue.Queue)
    incarnation: int = 1
    alive: bool = True
    unanswered: int = 0
    """letters in the inbox or at work"""
    sent: dict[str, int] = field(default_factory=dict)
    """messages with the request that the server waits for, and the incarnation that each went to"""
    kept: dict[str, _Letter] = field(default_factory=dict)
    """answers that are late or held"""
    held: bool = False
    log: list[str] = field(default_factory=list)
    """kinds of the requests that arrived"""


class MemoryLink:
    """Nodes, a mailbox for each, and what goes wrong.

    Args:
        memories: client id to a function that starts its process: its memory is empty, what is on disk is not.
    """

    def __init__(self, memories: Memories):
        self._lock = threading.Condition()
        self._work = threading.Lock()  # torch's generator is one for all, and a process's own in reality
        self._offset = 0.0
        self._faults: dict[tuple[str, str], list[Fault | Callable[[bytes], bytes]]] = {}
        self._answers: dict[str, tuple[str, _Letter]] = {}
        self._waiting: set[str] = set()
        self._looked: set[int] = set()
        self._kill: tuple[str, bool] | None = None
        self._killed = False
        self._errors = 0.0
        self.requests: list[tuple[str, str, bytes]] = []  # what was sent: client, kind, bytes
        self.replies: list[tuple[str, bytes]] = []  # what clients sent, before anything was replaced
        self.processes = {
            name: _Process(name, number, memory, memory()) for number, (name, memory) in enumerate(memories.items(), 10)
        }
        for process in self.processes.values():
            threading.Thread(target=self._live, args=[process], daemon=True).start()

    # --- what a test says ---

    def fault(self, client: str, kind: str, *faults: Fault | Callable[[bytes], bytes]) -> None:
        """What befalls a client at its next requests of a kind; a function replaces the bytes of its answer."""
        self._faults.setdefault((client, kind), []).extend(faults)

    def leave(self, client: str) -> None:
        """A client's process ends."""
        with self._lock:
            self.processes[client].alive = False

    def start(self, client: str) -> None:
        """A client's process starts: nothing is in its memory."""
        with self._lock:
            process = self.processes[client]
            process.answering = process.memory()
            process.alive, process.incarnation = True, process.incarnation + 1

    def release(self, client: str) -> None:
        """Let an answer go that is held, or late, once the client has it."""
        process = self.processes[client]
        with self._lock:
            assert self._lock.wait_for(lambda: process.kept, PATIENCE_SECONDS), f"{client} gives no answer"
            self._release(process)

    def _release(self, process: _Process) -> None:
        with self._lock:
            for message, letter in process.kept.items():
                self._answers[message] = process.name, letter
            process.kept, process.held = {}, False

    def kill_server(self, kind: str, after: bool = False) -> None:
        """End the server when it begins to send requests of a kind, or once all answers to them are there."""
        self._kill = kind, after

    def break_off(self, calls: float) -> None:
        """So many calls to the SuperLink fail from now on; infinite: it is gone."""
        self._errors = calls

    def transport(self, monkeypatch: pytest.MonkeyPatch, deadlines: Deadlines = DEADLINES) -> FlowerTransport:
        """A new server's way to the clients; what an earlier one waited for is lost."""
        with self._lock:
            self._kill = None if self._killed else self._kill
            self._killed, self._waiting = False, set()
            self._answers.clear()
        monkeypatch.setattr(flower, "time", SimpleNamespace(monotonic=self._now))
        for name, number in (("run_id", _RUN), ("task_id", _TASK), ("node_id", _SERVER)):
            monkeypatch.setattr(TaskIdentity, f"_{name}", number)
        keys = {name: _public_key(name) for name in self.processes}
        return _Transport(self, keys, deadlines, longest_poll=0.01)

    # --- Connection ---

    def nodes(self) -> list[Any]:
        with self._lock:
            self._may_fail()
            return [
                SimpleNamespace(public_key=_public_key(p.name), node_id=p.node, last_activated_at=str(p.incarnation))
                for p in self.processes.values()
                if p.alive
            ]

    def send(self, node: int, data: bytes, seconds: float) -> str:
        process = next(p for p in self.processes.values() if p.node == node)
        sent = decode(data, longest_message(len(data)))
        kind = sent.phase if not isinstance(sent, TrainRequest) else "training"  # pyright: ignore
        with self._lock:
            self._may_fail()
            if self._kill == (kind, False):
                self._killed = True
                raise ServerKilledError
        letter = _posted(request(data, node, seconds), process.incarnation)
        with self._lock:
            self.requests.append((process.name, kind, data))
            process.sent[letter.message] = letter.incarnation
            if process.alive and process.incarnation == letter.incarnation:
                process.unanswered += 1
                process.inbox.put(letter)
        return letter.message

    def receive(self, names: Sequence[str], limit_bytes: int, seconds: float) -> bytes | None:
        with self._lock:
            self._may_fail()
            if self._kill and self._kill[1] and self.requests[-1][1] == self._kill[0]:
                if all(self._silent(client) or self._arrived(client) for client in self._waiting):
                    self._killed = True
                    raise ServerKilledError
                return None
            found = next((name for name in names if name in self._answers), None)
            if found is None:
                return None
            client, letter = self._answers.pop(found)
            self._waiting.discard(client)
        return _fetched(letter, limit_bytes)[1]

    # --- inside ---

    def expect(self, clients: Mapping[str, Request]) -> None:
        """The server begins to wait for these."""
        with self._lock:
            self._waiting = set(clients)
            for process in self.processes.values():
                process.sent = {}

    def give_up(self, client: str) -> None:
        """The server no longer waits for this one."""
        with self._lock:
            self._waiting.discard(client)

    def _may_fail(self) -> None:
        if self._errors:
            self._errors -= 1
            raise ConnectionError("HTTP 503 from the SuperLink")

    def _now(self) -> float:
        with self._lock:
            gone = self._errors == math.inf
            if self._waiting and (gone or all(self._silent(client) for client in self._waiting)):
                self._looked.add(threading.get_ident())
                if len(self._looked) >= len(self._waiting):  # none of the waiting threads misses a moment
                    self._offset += _LEAP
                    self._looked.clear()
            return time.monotonic() * _FASTER + self._offset

    def _silent(self, client: str) -> bool:
        """Whether nothing will come from a client, whatever the server does but wait until it gives up."""
        process = self.processes[client]
        if not process.alive:
            return True
        done = process.incarnation in process.sent.values() and not process.unanswered
        return done and not process.held and not self._arrived(client)

    def _arrived(self, client: str) -> bool:
        return not self._answers.keys().isdisjoint(self.processes[client].sent)

    def _live(self, process: _Process) -> None:
        while True:
            letter = process.inbox.get()
            try:
                self._handle(process, letter)
            finally:
                with self._lock:
                    process.unanswered -= 1

    def _handle(self, process: _Process, letter: _Letter) -> None:
        with self._lock:
            self._release(process)  # too late for the request that it answers
            if letter.incarnation != process.incarnation or not process.alive:
                return
            message, data = _fetched(letter, longest_message(2**20))
            answering = process.answering
            sent = decode(data, len(data))
            kind = sent.phase if not isinstance(sent, TrainRequest) else "training"  # pyright: ignore
            process.log.append(kind)
            faults = self._faults.get((process.name, kind))
            fault = faults.pop(0) if faults else None
            if fault is Fault.DIES:
                self.leave(process.name)
            elif fault is Fault.RESTARTS:
                self.start(process.name)
        if fault in (Fault.DIES, Fault.RESTARTS):
            return
        with self._work:
            reply = answering(data)
        self._answer(process, message, reply, fault)

    def _answer(self, process: _Process, message: Message, reply: bytes, fault: Any) -> None:
        with self._lock:
            self.replies.append((process.name, reply))
            if fault is Fault.DIES_AFTER:
                self.leave(process.name)
            elif fault is Fault.RESTARTS_AFTER:
                self.start(process.name)
            elif fault is Fault.RECONNECTS:
                process.incarnation += 1
            if fault in (Fault.DIES_AFTER, Fault.RESTARTS_AFTER, Fault.RECONNECTS):
                return
            changed = fault(reply) if fault is not None and not isinstance(fault, Fault) else reply
            letter = _posted(Message(pack(changed), reply_to=message), process.incarnation)
            process.kept[message.metadata.message_id] = letter
            process.held = fault is Fault.HELD
            if fault not in (Fault.HELD, Fault.LATE):
                self._release(process)
            self._lock.notify_all()


class _Transport(FlowerTransport):
    """Tells the link for whom it waits."""

    run: MemoryLink

    def ask(self, requests: Mapping[str, Request]) -> Iterator[Answer]:
        self.run.expect(requests)
        yield from super().ask(requests)

    def _ask(self, client: str, request: Request, *arguments: Any) -> Answer:
        try:
            return super()._ask(client, request, *arguments)
        finally:
            self.run.give_up(client)


def _public_key(client: str) -> bytes:
    return f"public key of {client}".encode()


def _posted(message: Message, incarnation: int) -> _Letter:
    """A message in parts, as Flower sends it."""
    parts: dict[str, bytes] = {}
    announced: list[Any] = []

    def announce(head: Any, tree: Any) -> Any:
        announced[:] = [head, tree]
        nodes, names = [tree], []
        while nodes:
            names.append(nodes[-1].object_id)
            nodes.extend(nodes.pop().children)
        return SimpleNamespace(objects_to_push=names, session_id="session")

    name = send(message, announce, lambda session: parts.__setitem__)
    return _Letter(*announced, parts, name, incarnation)


def _fetched(letter: _Letter, limit_bytes: int) -> tuple[Message, bytes]:
    """Inverse of `_posted`."""
    return fetch(letter.head, letter.tree, lambda run: letter.parts.__getitem__, limit_bytes)
