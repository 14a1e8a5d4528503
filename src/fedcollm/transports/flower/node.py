"""A client's connection to a Flower SuperLink.

Flower's own SuperNode runs the code that the SuperLink sends, in a new process for every message. This one speaks the
same protocol (Fleet API, node authentication), asks for no code, and hands the bytes of a message to a function in this
process: the base model is loaded once, and the secrets of secure aggregation stay in memory.
"""

import contextlib
import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedcollm.errors import RefusalError, UserError
from fedcollm.messages import readable
from fedcollm.progress import say
from fedcollm.transports.flower.messages import LostError, fetch, pack, send

HEARTBEAT_SECONDS = 10.0  # the SuperLink takes a node for lost after two of them
_LONGEST_PAUSE = 5.0
_PATIENCE = 3 * HEARTBEAT_SECONDS  # a connection that broke off is taken for alive that long


@dataclass
class FlowerNode:
    """One registered node.

    Attributes:
        fleet: HTTP client of the Fleet API that signs its requests with the node's key.
        public_key: of the node, as Flower writes it.
        limit_bytes: the longest message to fetch.
        node: its number, once it is active.
    """

    fleet: FleetHttpClient = field(repr=False)
    public_key: bytes = field(repr=False)
    limit_bytes: int
    node: Node = field(init=False, repr=False, default_factory=Node)

    def activate(self, number: int | None = None) -> int:
        """Tell the SuperLink that this node is there.

        Args:
            number: of an earlier connection, which the SuperLink may still take for alive.

        Returns:
            The node's number.
        """
        if number is not None:
            with contextlib.suppress(httpx.HTTPStatusError):
                self.fleet.DeactivateNode(DeactivateNodeRequest(node_id=number))
        request = ActivateNodeRequest(public_key=self.public_key, heartbeat_interval=HEARTBEAT_SECONDS)
        self.node = Node(node_id=self.fleet.ActivateNode(request).node_id)
        return self.node.node_id

    def close(self) -> None:
        """Tell the SuperLink that this node goes away, if it can be told, and close the connection."""
        with contextlib.suppress(httpx.HTTPError):
            if self.node.node_id:
                self.fleet.DeactivateNode(DeactivateNodeRequest(node_id=self.node.node_id))
        self.fleet.close()

    def beat(self) -> bool:
        """One heartbeat; False if the SuperLink no longer knows this connection."""
        request = SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=HEARTBEAT_SECONDS)
        return self.fleet.SendNodeHeartbeat(request).success

    def receive(self) -> tuple[Message, bytes] | None:
        """The next message and its bytes, if there is one.

        Raises:
            LostError: it did not arrive whole.
            RefusalError: it is longer than the limit, or not a message.
        """
        response = self.fleet.PullMessages(PullMessagesRequest(node=self.node))
        if not response.messages_list:
            return None
        head, tree = response.messages_list[0], response.message_object_trees[0]
        pull = functools.partial(make_pull_object_fn_protobuf, self.fleet.PullObject, self.node)
        message, data = fetch(head, tree, pull, self.limit_bytes)
        run, name = message.metadata.run_id, message.metadata.message_id
        self.fleet.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self.node, run_id=run, message_object_id=name)
        )
        return message, data

    def reply(self, message: Message, data: bytes) -> None:
        """Send the answer to a message.

        Raises:
            LostError: it did not arrive whole.
        """
        run = message.metadata.run_id

        def announce(head: Any, tree: Any) -> Any:
            return self.fleet.PushMessages(
                PushMessagesRequest(
                    node=self.node, messages_list=[head], message_object_trees=[tree], clientapp_runtime_list=[0.0]
                )
            )

        send(
            Message(pack(data), reply_to=message),
            announce,
            lambda session: make_push_object_fn_protobuf(self.fleet.PushObject, self.node, run, session),
        )


def connect(address: str, certificate: str, key: ec.EllipticCurvePrivateKey, limit_bytes: int) -> FlowerNode:
    """A node that is not active yet.

    Args:
        address: HOST:PORT of the server; TLS only.
        certificate: path of the certificate authority's certificate, the only one that is trusted.
        key: the node's private key.
        limit_bytes: the longest message to fetch.
    """
    public = key.public_key()
    interceptors = [RuntimeVersionHttpInterceptor(component_name="SuperNode"), NodeAuthHttpInterceptor(key, public)]
    trusted = Path(certificate).read_bytes()
    fleet = FleetHttpClient.from_server_address(address, False, trusted, interceptors)
    return FlowerNode(fleet, public_key_to_bytes(public), limit_bytes)


@dataclass
class Service:
    """Keeps a node connected, and answers what it receives, until it is stopped.

    Attributes:
        node: the connection.
        answer: bytes of a request to bytes of an answer.
        number: of the node's last connection, if it is known.
        connected: is told the number of every connection.
        longest_poll: seconds between two looks for a message, at most.
    """

    node: FlowerNode
    answer: Callable[[bytes], bytes]
    number: int | None = None
    connected: Callable[[int], None] = lambda number: None
    longest_poll: float = 1.0
    stopped: threading.Event = field(default_factory=threading.Event)
    _alive: threading.Event = field(init=False, repr=False, default_factory=threading.Event)
    _unsent: tuple[Message, bytes] | None = field(init=False, repr=False, default=None)

    def run(self) -> None:
        """Connect and answer; come back after every failure of the network or the server.

        Raises:
            UserError: the server's certificate is not the authority's, or the server does not know this key.
        """
        heart = threading.Thread(target=self._beat, daemon=True)
        heart.start()
        pause, failing_since = 0.05, None
        try:
            while not self.stopped.is_set():
                try:
                    busy = self._step()
                    pause, failing_since = (0.05 if busy else min(pause * 1.3, self.longest_poll)), None
                except (httpx.TransportError, httpx.HTTPStatusError) as error:
                    failing_since = failing_since or time.monotonic()
                    _raise_if_final(error, time.monotonic() - failing_since)
                    if pause <= self.longest_poll:
                        say(f"the server does not answer ({_described(error)}); trying again")
                    pause = min(max(2 * pause, 2 * self.longest_poll), _LONGEST_PAUSE)
                self.stopped.wait(pause)
        finally:
            self.stopped.set()
            heart.join()
            self.node.close()

    def _step(self) -> bool:
        """Reconnect where needed, and answer the next message; whether there was one."""
        if not self._alive.is_set():
            self.number = self.node.activate(self.number)
            self.connected(self.number)
            self._alive.set()
            say("connected; waiting for the server")
        if self._unsent is None and not self._make_answer():
            return False
        if self._unsent is not None:
            message, data = self._unsent
            try:
                self.node.reply(message, data)
            except httpx.HTTPStatusError as error:
                if error.response.status_code >= 500:
                    raise  # it stays unsent, and is sent once the server is back
                say(f"the server no longer wants this answer (HTTP {error.response.status_code})")
            except LostError as error:
                say(f"an answer was lost on its way ({error})")
            self._unsent = None
        return True

    def _make_answer(self) -> bool:
        """Answer the next message, if there is one; the answer is not sent yet."""
        try:
            received = self.node.receive()
            if received is None:
                return False
            message, data = received
            self._unsent = message, self.answer(data)
        except RefusalError as error:
            say(f"refused: {readable(str(error))}")
        except LostError as error:
            say(f"a message was lost on its way ({error})")
        return True

    def _beat(self) -> None:
        """Heartbeats, also while an answer is being made."""
        while not self.stopped.wait(HEARTBEAT_SECONDS / 3):
            if self._alive.is_set():
                with contextlib.suppress(httpx.HTTPError):
                    if not self.node.beat():
                        self._alive.clear()


def _described(error: httpx.HTTPError) -> str:
    return f"HTTP {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else str(error)


def _raise_if_final(error: httpx.HTTPError, failing: float) -> None:
    """What waiting does not mend is the user's to mend.

    Args:
        error: of a request.
        failing: seconds since requests began to fail.

    Raises:
        UserError: a certificate or a key is not accepted.
    """
    if isinstance(error, httpx.TransportError) and "certificate" in str(error).lower():
        raise UserError(
            f"the server's certificate is not accepted ({error}). Check that ca.crt here is that of the server's "
            "operator, that the certificate has not expired, and that the address in membership.json is right."
        ) from error
    code = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 500
    if code == 401 or (code < 500 and failing > _PATIENCE):
        raise UserError(
            f"the server does not accept this client (HTTP {code}). Check that node.key is the "
            "one made for this deployment, and this machine's clock; if they are right, ask the server's operator "
            "whether this client is registered there."
        ) from error
