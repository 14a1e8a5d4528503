"""A client's connection to a Flower SuperLink.

Flower's own SuperNode runs the code that the SuperLink sends, in a new process for every message. The node in this
module speaks the same protocol (Fleet API, node authentication), but asks for no code: it hands the bytes of a message
to a function in this process. So the base model is loaded only once, and the secrets of secure aggregation stay in
memory.
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

#: The SuperLink considers a node lost when it has missed two heartbeats.
HEARTBEAT_SECONDS = 10.0
_LONGEST_PAUSE_SECONDS = 5.0
_TOO_MANY = 429  # requests, by HTTP: the next one may be answered
_PATIENCE_SECONDS = 3 * HEARTBEAT_SECONDS  # the SuperLink may consider a broken connection alive for so long


@dataclass
class FlowerNode:
    """A node that is registered at the SuperLink.

    Attributes:
        fleet: HTTP client of the Fleet API. It signs its requests with the node's private key.
        public_key: the node's public key, in Flower's format.
        limit_bytes: size of the longest message to fetch.
        node: protobuf message with the node's number, once the node is active.
    """

    fleet: FleetHttpClient = field(repr=False)
    public_key: bytes = field(repr=False)
    limit_bytes: int
    node: Node = field(init=False, repr=False, default_factory=Node)

    def activate(self, number: int | None = None) -> int:
        """Tell the SuperLink that this node is connected.

        Args:
            number: the node's number in an earlier connection, which the SuperLink may still consider alive.

        Returns:
            The node's number in this connection.
        """
        if number is not None:
            with contextlib.suppress(httpx.HTTPStatusError):
                self.fleet.DeactivateNode(DeactivateNodeRequest(node_id=number))
        request = ActivateNodeRequest(public_key=self.public_key, heartbeat_interval=HEARTBEAT_SECONDS)
        self.node = Node(node_id=self.fleet.ActivateNode(request).node_id)
        return self.node.node_id

    def close(self) -> None:
        """Tell the SuperLink, if it can be reached, that this node leaves, and close the connection."""
        with contextlib.suppress(httpx.HTTPError):
            if self.node.node_id:
                self.fleet.DeactivateNode(DeactivateNodeRequest(node_id=self.node.node_id))
        self.fleet.close()

    def beat(self) -> bool:
        """Send one heartbeat; return False if the SuperLink no longer knows this connection."""
        request = SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=HEARTBEAT_SECONDS)
        return self.fleet.SendNodeHeartbeat(request).success

    def receive(self) -> tuple[Message, bytes] | None:
        """Return the next message and its bytes, or None if there is none.

        Raises:
            LostError: the message did not arrive whole.
            RefusalError: the message is longer than the limit, or was not made by fedcollm.
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

        Args:
            message: the message that is answered.
            data: the answer.

        Raises:
            LostError: the answer did not arrive whole.
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
    """Return a node that is not active yet.

    Args:
        address: HOST:PORT of the server, which is reached over TLS only.
        certificate: path of the certificate of the only certificate authority that is trusted.
        key: the node's private key.
        limit_bytes: size of the longest message to fetch.
    """
    public = key.public_key()
    interceptors = [RuntimeVersionHttpInterceptor(component_name="SuperNode"), NodeAuthHttpInterceptor(key, public)]
    trusted = Path(certificate).read_bytes()
    fleet = FleetHttpClient.from_server_address(address, False, trusted, interceptors)
    return FlowerNode(fleet, public_key_to_bytes(public), limit_bytes)


def _ignore(number: int) -> None:
    """Do nothing with the number of a connection."""


@dataclass
class Service:
    """Keep a node connected, and answer the messages that it receives, until it is stopped.

    Attributes:
        node: the node.
        answer: returns the bytes of the answer to the bytes of a request.
        number: the node's number in its last connection, if it is known.
        connected: is called with the node's number in every new connection.
        longest_poll: longest time between two polls for a message, in seconds.
        stopped: is set to stop the service.
    """

    node: FlowerNode
    answer: Callable[[bytes], bytes]
    number: int | None = None
    connected: Callable[[int], None] = _ignore
    longest_poll: float = 1.0
    stopped: threading.Event = field(default_factory=threading.Event)
    _alive: threading.Event = field(init=False, repr=False, default_factory=threading.Event)
    _unsent: tuple[Message, bytes] | None = field(init=False, repr=False, default=None)

    def run(self) -> None:
        """Connect and answer messages; reconnect after every failure of the network or the server.

        Raises:
            UserError: the server's certificate is not accepted here, or the server does not accept this node's key.
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
                        say(readable(f"the server does not answer ({_described(error)}); trying again"))
                    pause = min(max(2 * pause, 2 * self.longest_poll), _LONGEST_PAUSE_SECONDS)
                self.stopped.wait(pause)
        finally:
            self.stopped.set()
            heart.join()
            self.node.close()

    def _step(self) -> bool:
        """Reconnect if necessary, and answer the next message. Return whether there was one."""
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
                if error.response.status_code >= 500 or error.response.status_code == _TOO_MANY:
                    raise  # the answer is kept, and sent once the server is back
                say(f"the server no longer wants this answer (HTTP {error.response.status_code})")
            except LostError as error:
                say(readable(f"an answer was lost on its way ({error})"))
            self._unsent = None
        return True

    def _make_answer(self) -> bool:
        """Make the answer to the next message, without sending it. Return whether there was a message."""
        try:
            received = self.node.receive()
            if received is None:
                return False
            message, data = received
            self._unsent = message, self.answer(data)
        except RefusalError as error:
            say(f"refused: {readable(str(error))}")
        except LostError as error:
            say(readable(f"a message was lost on its way ({error})"))
        except httpx.HTTPError:
            raise
        except Exception as error:  # a faulty message is lost, and not this process
            say(readable(f"a message can't be handled ({type(error).__name__}: {error})"))
        return True

    def _beat(self) -> None:
        """Send heartbeats, including while an answer is being made."""
        while not self.stopped.wait(HEARTBEAT_SECONDS / 3):
            if self._alive.is_set():
                with contextlib.suppress(httpx.HTTPError):
                    if not self.node.beat():
                        self._alive.clear()


#: What a status of HTTP means here.
_CODES = {
    401: "this client's key is not admitted",
    412: "the server does not know this client's key at the moment",
    413: "the message is longer than the server takes",
    429: "this address sends too many requests",
    502: "the server's SuperLink is not running",
    504: "the server's SuperLink is too slow",
}


def _described(error: httpx.HTTPError) -> str:
    if not isinstance(error, httpx.HTTPStatusError):
        return str(error)
    code = error.response.status_code
    return f"HTTP {code}: {_CODES[code]}" if code in _CODES else f"HTTP {code}"


def _raise_if_final(error: httpx.HTTPError, failing: float) -> None:
    """Raise an error if waiting does not help, because only the user can solve the problem.

    Args:
        error: error of a request to the server.
        failing: seconds since requests began to fail.

    Raises:
        UserError: the server's certificate or this node's key is not accepted.
    """
    if isinstance(error, httpx.TransportError) and "certificate" in str(error).lower():
        raise UserError(
            f"the server's certificate is not accepted ({error}). Check that ca.crt here is that of the server's "
            "operator, that the certificate has not expired, and that the address in membership.json is right."
        ) from error
    code = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 500
    if code == 401 or (code < 500 and code != _TOO_MANY and failing > _PATIENCE_SECONDS):
        raise UserError(
            f"the server does not accept this client ({_described(error)}). Check that node.key is the one made for "
            "this deployment, and that this machine's clock is right. If both are, ask the server's operator whether "
            "this client is registered there."
        ) from error
