"""The server's connection to a Flower SuperLink: it opens a run, and sends and receives messages in that run.

Flower itself would start the server's program in a new process, from an archive of code. Here, the program is this
process. It opens a run, takes over the run's task as Flower's SuperExec would, and speaks the Runtime API as Flower's
grid does.
"""

import contextlib
import functools
import hashlib
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import SUPERLINK_NODE_ID, SubStatus
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    GetNodesRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClient, ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from fedcollm.errors import UserError
from fedcollm.transports.flower.messages import LostError, fetch, request, send
from fedcollm.transports.flower.transport import RunLostError

C = TypeVar("C", bound=ProtobufClient)

_UNREGISTERED = "unregistered"  # the SuperLink remembers such nodes, and refuses them
_SERVER = Node(node_id=SUPERLINK_NODE_ID)
_APP = """[project]
name = "fedcollm"
version = "1.0.0"
description = "Placeholder: server and clients run their own installed code"
license = {text = "Apache-2.0"}
dependencies = []
[tool.flwr.app]
publisher = "fedcollm"
[tool.flwr.app.components]
serverapp = "fedcollm_app:server"
clientapp = "fedcollm_app:client"
"""


@dataclass(frozen=True)
class SuperLink:
    """A SuperLink on this machine.

    Attributes:
        address: HOST:PORT.
        certificate: path of the certificate authority's certificate.
        secret: secret that is shared with the SuperLink. Whoever knows it can take over runs.
    """

    address: str
    certificate: Path
    secret: bytes

    def is_up(self) -> bool:
        """Return whether the SuperLink answers."""
        with contextlib.suppress(httpx.HTTPError), self._control() as control:
            control.ListRuns(ListRunsRequest())
            return True
        return False

    def nodes(self) -> list[Any]:
        """Return what the SuperLink knows about every registered node: `public_key`, `status`, `node_id`, ..."""
        with self._control() as control:
            return [node for node in control.ListNodes(ListNodesRequest()).nodes_info if node.status != _UNREGISTERED]

    def register(self, keys: Iterable[bytes]) -> None:
        """Register the nodes with these public keys, and unregister all others."""
        wanted = set(keys)
        known = {node.public_key: node.node_id for node in self.nodes()}
        with self._control() as control:
            for key in sorted(wanted - known.keys()):
                control.RegisterNode(RegisterNodeRequest(public_key=key))
            for key in sorted(known.keys() - wanted):
                control.UnregisterNode(UnregisterNodeRequest(node_id=known[key]))

    @contextlib.contextmanager
    def run(self) -> Generator["Run", None, None]:
        """Yield a new run, which ends with the context. Runs that an earlier process left behind are stopped first."""
        number = self._start()
        token = RuntimeTokenHttpInterceptor(token=self._take_over(number))
        client = self._client(RuntimeHttpClient, "flwr-serverapp", token)
        heartbeat, status = HeartbeatSender(make_task_heartbeat_fn_http(client)), SubStatus.FAILED
        task = client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task.task_id, number, task.context.node_id
        heartbeat.start()
        try:
            yield Run(client, number)
            status = SubStatus.COMPLETED
        finally:
            heartbeat.stop()
            with contextlib.suppress(httpx.HTTPError):
                client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=""))
            client.close()

    def _start(self) -> int:
        """Stop every run that is not finished, start a new one, and return its number."""
        archive, _ = build_fab_from_files({"pyproject.toml": _APP.encode(), "fedcollm_app.py": b""})
        fab = Fab(hashlib.sha256(archive).hexdigest(), archive, {})
        with self._control() as control:
            for number, run in control.ListRuns(ListRunsRequest()).run_dict.items():
                if run.status.status != "finished":
                    control.StopRun(StopRunRequest(run_id=number))
            return control.StartRun(StartRunRequest(fab=fab_to_proto(fab))).run_id

    def _take_over(self, number: int) -> str:
        """Take over the task of a run, given its number, and return the task's token.

        Raises:
            UserError: another process has taken it over.
        """
        protected = frozenset({"/flwr.proto.Runtime/AcquireTask"})
        signed = SuperExecAuthHttpInterceptor(master_secret=self.secret, protected_methods=protected)
        with contextlib.closing(self._client(RuntimeHttpClient, "SuperExec", signed)) as client:
            while True:
                response = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
                if not response.token:
                    raise UserError(
                        f"the SuperLink at {self.address} has given run {number} to another process. Stop that process."
                    )
                if response.task.run_id == number:
                    return response.token

    def _control(self) -> contextlib.closing[ControlHttpClient]:
        return contextlib.closing(self._client(ControlHttpClient, "CLI"))

    def _client(self, kind: type[C], component: str, *interceptors: ProtobufClientInterceptor) -> C:
        version = RuntimeVersionHttpInterceptor(component_name=component)
        trusted = self.certificate.read_bytes()
        return kind.from_server_address(self.address, False, trusted, [version, *interceptors])


@dataclass(frozen=True)
class Run:
    """A run at a SuperLink. Every method raises a ConnectionError if the SuperLink can't be reached at the moment.

    Attributes:
        client: HTTP client of the Runtime API, with the run's token.
        number: number of the run.
    """

    client: RuntimeHttpClient = field(repr=False)
    number: int

    def nodes(self) -> list[Any]:
        """Return the connected nodes, each with `public_key`, `node_id` and `last_activated_at`."""
        with _reaching():
            return list(self.client.GetNodes(GetNodesRequest()).nodes)

    def send(self, node: int, data: bytes, seconds: float) -> str:
        """Send bytes to a node.

        Args:
            node: number of the node.
            data: the bytes.
            seconds: how long the node has to fetch them.

        Returns:
            The message's id.
        """

        def announce(head: Any, tree: Any) -> Any:
            return self.client.PushMessages(PushAppMessagesRequest(messages_list=[head], message_object_trees=[tree]))

        def push(session: str) -> Any:
            return make_push_object_fn_protobuf(self.client.PushObject, _SERVER, self.number, session)

        with _reaching():
            return send(request(data, node, seconds), announce, push)

    def receive(self, names: Sequence[str], limit_bytes: int, seconds: float) -> bytes | None:
        """Return the first answer to any of these messages, or None if there is none yet.

        Args:
            names: ids of the messages.
            limit_bytes: size of the longest answer to fetch.
            seconds: how long an answer that was announced may take to arrive whole.

        Raises:
            RefusalError: the answer is longer than the limit, or malformed.
        """
        with _reaching():
            response = self.client.PullMessages(PullAppMessagesRequest(message_ids=names))
            for head, tree in zip(response.messages_list, response.message_object_trees, strict=True):
                if head.HasField("error"):  # written by Flower: the node is not connected, or the message has expired
                    continue
                pull = functools.partial(make_pull_object_fn_protobuf, self.client.PullObject, _SERVER)
                message, data = fetch(head, tree, pull, limit_bytes, seconds)
                name = message.metadata.message_id
                self.client.ConfirmMessageReceived(
                    ConfirmMessageReceivedRequest(node=_SERVER, run_id=self.number, message_object_id=name)
                )
                return data
        return None


@contextlib.contextmanager
def _reaching() -> Generator[None, None, None]:
    """Turn errors that may pass into a ConnectionError, and the end of the run into a RunLostError."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        if error.response.status_code in (401, 403):
            raise RunLostError("the run was stopped at the SuperLink.") from error
        raise ConnectionError(f"HTTP {error.response.status_code} from the SuperLink") from error
    except (httpx.TransportError, LostError) as error:
        raise ConnectionError(str(error)) from error
