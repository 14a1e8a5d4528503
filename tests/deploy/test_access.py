"""Who gets in from outside: nobody but registered nodes, over TLS, to the node interface alone."""

import base64
import contextlib
import os
import shutil
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.control_pb2 import ListRunsRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from tests.conftest import PATIENCE_SECONDS, wait_for
from tests.deploy.conftest import free_port, needs_nginx

from fedcollm.config import RunConfig
from fedcollm.config.loading import load_config
from fedcollm.deploy import directories as names
from fedcollm.deploy import front, services
from fedcollm.deploy.admission import publish, remove, renew
from fedcollm.deploy.certificates import Authority
from fedcollm.deploy.checks import check
from fedcollm.deploy.directories import Deployment, Membership
from fedcollm.deploy.front import MOST_CONNECTIONS, stream_module
from fedcollm.deploy.initialize import Choices, Site, initialize
from fedcollm.deploy.processes import find, orphans, stop, workers
from fedcollm.deploy.roster_keeper import RemovedError, RosterKeeper
from fedcollm.deploy.services import start_proxy, start_superlink, superlink
from fedcollm.deploy.status import stop_all
from fedcollm.errors import UserError
from fedcollm.transports.flower import node as flower_node
from fedcollm.transports.flower.node import FlowerNode, Service, connect

pytestmark = [pytest.mark.deploy, needs_nginx]
LIMIT = 2**20
SIZES = {"public_size": 8, "unlabelled_size": 0, "test_size": 12}  # of the operator's data


@pytest.fixture(scope="module")
def config(model_directories: dict[str, str], word_data: Path) -> RunConfig:
    shape = {"prompt": "{text} is a", "answer": "kind", "choices": ["colour", "animal"]}
    return load_config(
        "icd10",
        task={"name": "custom", "path": str(word_data), "format": shape, "clients": 4, **SIZES},
        llm={"source": model_directories["llm"]},
        slm={"source": model_directories["slm"], "layers": None, "heal": None},
        federation={"secure_aggregation": True},
    )


def be_patient(fleet: FleetHttpClient) -> None:
    """Have a client wait longer for an answer than the 5 s that Flower gives a server."""
    fleet._client.timeout = PATIENCE_SECONDS


class Open:
    """A running SuperLink behind nginx."""

    def __init__(self, root: Path, deployment: Deployment):
        self.root, self.server, self.deployment = root, root / "server", deployment
        self.address = f"localhost:{deployment.port}"
        self.url = f"https://{self.address}"
        self.ca = str(self.server / names.CA)
        self.open = contextlib.ExitStack()

    def node(self, key: ec.EllipticCurvePrivateKey, ca: str | None = None, address: str | None = None) -> FlowerNode:
        node = connect(address or self.address, ca or self.ca, key, LIMIT)
        be_patient(node.fleet)
        self.open.callback(node.fleet.close)
        return node

    def serial(self) -> int:
        """The serial number of the certificate that is served."""
        context = ssl.create_default_context(cafile=self.ca)
        with (
            socket.create_connection(("localhost", self.deployment.port)) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as tls,
        ):
            return int((tls.getpeercert() or {})["serialNumber"], 16)

    def key(self, client: str) -> ec.EllipticCurvePrivateKey:
        return names.node_key(self.root / "clients" / client)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, config: RunConfig) -> Iterator[Open]:
    root = tmp_path_factory.mktemp("access") / "deployment"
    deployment = initialize(config, Site("localhost", free_port(), free_port()), root, Choices(demo=True))
    server = root / "server"
    for name in ("state", "logs"):
        (server / name).mkdir()
    link = start_superlink(server, deployment)
    start_proxy(server, deployment)
    publish(server, deployment)
    link.register(keys.node.encode() for keys in deployment.clients.values())
    place = Open(root, deployment)
    yield place
    place.open.close()
    stop(server, "superlink", seconds=0)
    stop_all(server)


def test_registered_key_is_let_in_and_keeps_its_number(running: Open):
    node = running.node(running.key("0"))
    number = node.activate()
    assert node.receive() is None
    assert node.beat()
    assert running.node(running.key("0")).activate(number) == number  # at once, though the first one was never closed


def test_unregistered_key_is_refused_and_the_client_says_so(running: Open, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(flower_node, "_PATIENCE_SECONDS", 0.0)
    stranger = running.node(ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(httpx.HTTPStatusError):
        stranger.activate()
    with pytest.raises(UserError, match=r"does not accept this client .*node\.key"):
        Service(stranger, lambda data: data).run()


def test_node_of_another_key_is_refused(running: Open):
    number = running.node(running.key("1")).activate()
    thief = running.node(running.key("2"))
    thief.node = Node(node_id=number)
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        thief.receive()


def bare(running: Open) -> FleetHttpClient:
    """Without a key: requests are not signed."""
    version = [RuntimeVersionHttpInterceptor(component_name="SuperNode")]
    fleet = FleetHttpClient.from_server_address(running.address, False, Path(running.ca).read_bytes(), version)
    be_patient(fleet)
    running.open.callback(fleet.close)
    return fleet


def test_no_key_is_refused(running: Open):
    known = public_key_to_bytes(running.key("0").public_key())
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        bare(running).ActivateNode(ActivateNodeRequest(public_key=known, heartbeat_interval=30))
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        bare(running).PullMessages(PullMessagesRequest(node=Node(node_id=1)))


def test_nobody_registers_itself(running: Open):
    key = ec.generate_private_key(ec.SECP384R1())
    node = running.node(key)
    with pytest.raises(httpx.HTTPStatusError):
        node.fleet.RegisterNode(RegisterNodeFleetRequest(public_key=public_key_to_bytes(key.public_key())))
    assert len(superlink(running.server, running.deployment).nodes()) == 4


def test_server_of_another_authority_is_refused(running: Open, tmp_path: Path):
    (tmp_path / "ca.crt").write_bytes(Authority.make("other", 10).pem())
    node = running.node(running.key("0"), ca=str(tmp_path / "ca.crt"))
    with pytest.raises(UserError, match="certificate is not accepted"):
        Service(node, lambda data: data).run()


@pytest.mark.parametrize(("hosts", "days"), [(["localhost"], -1), (["elsewhere.example"], 10)])
def test_expired_certificate_and_wrong_name_are_refused(running: Open, tmp_path: Path, hosts: list[str], days: int):
    authority = Authority.make("x", 10)
    certificate, key = authority.server(hosts, days)
    (tmp_path / "pair.pem").write_bytes(certificate + key)
    (tmp_path / "ca.crt").write_bytes(authority.pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pair.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            try:
                context.wrap_socket(connection, server_side=True).close()
            except (ssl.SSLError, OSError):
                connection.close()

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        node = running.node(
            running.key("0"), ca=str(tmp_path / "ca.crt"), address=f"localhost:{listener.getsockname()[1]}"
        )
        with pytest.raises(UserError, match=r"certificate is not accepted .*expired"):
            Service(node, lambda data: data).run()
        thread.join()


def test_plain_http_is_refused(running: Open):
    response = httpx.post(f"http://{running.address}/v1/fleet/pull-messages", timeout=PATIENCE_SECONDS)
    assert response.status_code == 400
    assert "HTTPS port" in response.text


def test_old_tls_is_refused(running: Open):
    context = ssl.create_default_context(cafile=running.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("localhost", running.deployment.port)) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="localhost")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-runs",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/runtime/get-nodes",
        "/docs",
        "/openapi.json",
        "/health",
        "/",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/..%2fcontrol/list-runs",
        "/v1/fleet/x/../../control/list-runs",
        "//v1/control/list-runs",
        "/V1/control/list-runs",
    ],
)
def test_no_other_interface_is_reachable_from_outside(running: Open, path: str):
    body = ListRunsRequest().SerializeToString()
    raw = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-protobuf\r\n"
    raw += f"Accept: application/x-protobuf\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    context = ssl.create_default_context(cafile=running.ca)
    with (
        socket.create_connection(("localhost", running.deployment.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.sendall(raw.encode() + body)
        status = tls.recv(4096).split(b" ")[1]
    assert status in (b"400", b"404"), status
    wait_for(superlink(running.server, running.deployment).is_up)


def test_control_interface_answers_on_this_machine_alone(running: Open):
    """So the test above can fail: the interface is there, and only nginx keeps it from outside."""
    wait_for(superlink(running.server, running.deployment).is_up)
    number = int((running.server / "state" / "superlink.pid").read_text())
    listening = [c.laddr for c in psutil.Process(number).net_connections() if c.status == psutil.CONN_LISTEN]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", running.deployment.superlink_port)]


def test_runs_can_be_taken_over_with_the_secret_only(running: Open):
    link = superlink(running.server, running.deployment)
    thief = type(link)(link.address, link.certificate, b"guessed")
    with pytest.raises(httpx.HTTPStatusError, match=r"401|403"), thief.run():
        pass


# --- the roster, floods, certificates and removal ---


def keeper(running: Open, client: str) -> RosterKeeper:
    place = running.root / "clients" / client
    own = names.signing_key(place).public_key().public_bytes_raw().hex()
    return RosterKeeper(place, names.read(place, names.MEMBERSHIP, Membership), own)


def test_client_fetches_the_signed_roster(running: Open):
    assert list(keeper(running, "0").refreshed().clients) == ["0", "1", "2", "3"]


def ask(running: Open, head: str, body: bytes = b"") -> bytes:
    """The status of an answer to what may be less than a whole request."""
    context = ssl.create_default_context(cafile=running.ca)
    with (
        socket.create_connection(("localhost", running.deployment.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.settimeout(PATIENCE_SECONDS)
        tls.sendall(head.encode() + body)
        return tls.recv(4096).split(b" ")[1]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "RUN/latest.json", b"200"),
        ("GET", "RUN/", b"404"),
        ("GET", "", b"404"),
        ("GET", "other/roster.json", b"404"),
        ("GET", "RUN/../../server.key", b"404"),
        ("GET", "RUN/roster.json/../../../deployment.json", b"404"),
        ("PUT", "RUN/roster.json", b"403"),
    ],
)
def test_nothing_but_two_files_is_served(running: Open, method: str, path: str, status: bytes):
    path = path.replace("RUN", running.deployment.run)
    assert ask(running, f"{method} /roster/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n") == status


def test_body_of_a_peer_that_nobody_knows_is_not_waited_for(running: Open):
    """Four bytes of 16 kB, or of 16 MB, are sent; the answer comes all the same."""
    head = "POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 16000\r\n"
    assert ask(running, head.replace("16000", "16000000") + "\r\n", b"body") == b"413"
    assert ask(running, head + "\r\n", b"body") == b"401"
    assert ask(running, head + "flwr-public-key: guessed\r\n\r\n", b"body") == b"401"
    known = admitted_head(running, "pull-messages", 4)
    assert ask(running, known, b"body") != b"401"
    key = known.split("flwr-public-key: ")[1].split("\r\n")[0]
    assert ask(running, known.replace(key, key.swapcase()), b"body") == b"401"  # limits count each key once
    assert not list((running.server / "state" / "nginx-body").iterdir())


def test_check_of_a_client_that_may_come(running: Open, tmp_path: Path):
    found = {finding.name: finding for finding in check(running.root / "clients" / "0", tmp_path / "none")}
    assert {name for name, finding in found.items() if not finding.good} == {"data and model"}
    assert found["certificate"].text == "TLSv1.3, the server's certificate is this deployment's, for 365 days more"


def connected(running: Open, client: str) -> FlowerNode:
    """A client that has come back, if an earlier test has left it connected."""
    node = running.node(running.key(client))
    numbers = {known.public_key: known.node_id for known in superlink(running.server, running.deployment).nodes()}
    node.activate(numbers[node.public_key])
    return node


def flood(stack: contextlib.ExitStack, running: Open, address: str, count: int) -> list[socket.socket]:
    """Connections that begin a TLS handshake and do not go on."""
    made = []
    for _ in range(count):
        there = ("127.0.0.1", running.deployment.port)
        one = stack.enter_context(socket.create_connection(there, PATIENCE_SECONDS, source_address=(address, 0)))
        one.sendall(b"\x16\x03\x01")
        made.append(one)
    return made


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def is_served(running: Open, node: FlowerNode) -> float:
    """The seconds in which a client that is connected, and one that comes now, get answers."""
    began = time.monotonic()
    assert node.receive() is None
    assert connected(running, "2").receive() is None
    return time.monotonic() - began


def test_flood_from_another_address_is_cut_and_a_registered_client_served(running: Open):
    """More than nginx would take by default, and none of them has a header that could be counted."""
    if stream_module(shutil.which("nginx") or "") is None:
        pytest.skip("nginx has no stream module")
    node = connected(running, "1")
    with contextlib.ExitStack() as stack:
        made = flood(stack, running, "127.0.0.2", 600)
        seconds = is_served(running, node)
        left = sum(map(is_open, made))
        print(f"four requests during the flood: {seconds:.2f} s; open: {left} of 600")
        assert 0 < left <= MOST_CONNECTIONS
    assert seconds < 8  # they are thrown out after 10 s


def test_some_slow_connections_from_a_clients_own_address_leave_it_served(running: Open):
    node = connected(running, "1")
    with contextlib.ExitStack() as stack:
        made = flood(stack, running, "127.0.0.1", 100)
        assert is_served(running, node) < 8
        assert all(map(is_open, made))


def test_nginx_without_a_stream_module_listens_itself(running: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(front, "stream_module", lambda program: None)
    monkeypatch.setattr(services, "stream_module", lambda program: None)
    place, port = tmp_path / "server", free_port()
    shutil.copytree(running.server, place, ignore=shutil.ignore_patterns("*.pid", "*.sock", "superlink*", "*.log"))
    for name in ("superlink.crt", "superlink.key"):
        shutil.copy(running.server / name, place / name)
    start_proxy(place, running.deployment.model_copy(update={"port": port}))
    try:
        context = ssl.create_default_context(cafile=running.ca)
        assert httpx.get(f"https://localhost:{port}/", verify=context).status_code == 404
    finally:
        stop(place, "nginx")


def admitted_head(running: Open, call: str, length: int) -> str:
    """A request that has an admitted key, and no signature."""
    keys = names.read(running.server, names.DEPLOYMENT, Deployment).clients["0"]
    key = base64.b64encode(keys.node.encode()).decode()
    return f"POST /v1/fleet/{call} HTTP/1.1\r\nHost: x\r\nflwr-public-key: {key}\r\nContent-Length: {length}\r\n\r\n"


@pytest.mark.parametrize(
    ("call", "length", "taken"),
    [
        ("push-messages", 16 * 2**10, True),
        ("push-messages", 16 * 2**10 + 1, False),  # the tree of an announcement: each part costs the SuperLink a query
        ("pull-messages", 16 * 2**10 + 1, False),
        ("x", 16 * 2**10 + 1, False),
        ("push-object", 4 * 2**20 + 2**10, True),
        ("push-object", 6 * 2**20, False),
    ],
)
def test_what_a_client_sends_is_bounded_before_flower_works_on_it(running: Open, call: str, length: int, taken: bool):
    body = bytes(length if call == "push-messages" and taken else 0)  # the SuperLink waits for no part
    assert ask(running, admitted_head(running, call, length), body) == (b"415" if taken else b"413")


def test_log_has_the_address_of_a_peer_and_no_text_of_its_choice(running: Open):
    context = ssl.create_default_context(cafile=running.ca)
    strange = f"GET /{'from-3-' * 1000}?from-3 HTTP/1.1\r\nHost: x\r\nContent-Length: {10**9}\r\n\r\n"
    known = admitted_head(running, "pull-messages?from-3", 0)
    for head in (strange, known):
        with (
            socket.create_connection(("127.0.0.1", running.deployment.port), source_address=("127.0.0.3", 0)) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as tls,
        ):
            tls.sendall(head.encode())
            tls.recv(4096)
    log = running.server / "logs" / "nginx-access.log"
    wait_for(lambda: " 127.0.0.3 pull-messages 4" in log.read_text())
    for name in ("nginx-access.log", "nginx-error.log"):
        assert "from-3" not in (log.with_name(name)).read_text()
    assert log.read_text().count(" 127.0.0.3 ") == 1


def test_strangers_are_slowed_down_and_known_clients_are_not(running: Open):
    context = ssl.create_default_context(cafile=running.ca)
    transport = httpx.HTTPTransport(local_address="127.0.0.4", verify=context)
    with httpx.Client(transport=transport, timeout=PATIENCE_SECONDS) as client:
        for path in ("/", "/v1/fleet/pull-messages"):
            codes = {client.get(f"https://127.0.0.1:{running.deployment.port}{path}").status_code for _ in range(400)}
            assert 429 in codes
            assert codes <= {429, 401, 404}
    assert is_served(running, connected(running, "1")) >= 0


def test_workers_of_a_killed_nginx_do_not_keep_the_port_and_the_old_certificate(running: Open):
    master = find(running.server, "nginx")
    assert master is not None
    left = workers(running.server)
    os.kill(master.pid, signal.SIGKILL)
    wait_for(lambda: {one.pid for one in orphans(running.server)} == left)
    certificate = renew(running.server, Authority.load(running.root / "ca"), 40)
    assert orphans(running.server) == []
    assert running.serial() == certificate.serial_number
    assert connected(running, "0").beat()


def test_renewed_certificate_is_served_and_clients_go_on(running: Open):
    node = connected(running, "0")
    certificate = renew(running.server, Authority.load(running.root / "ca"), 30)
    wait_for(lambda: running.serial() == certificate.serial_number)
    assert node.receive() is None
    assert node.beat()


def test_removed_client_is_refused_and_told(running: Open, monkeypatch: pytest.MonkeyPatch):
    node = connected(running, "3")
    roster = remove(running.server, "3", Authority.load(running.root / "ca"))
    assert list(roster.clients) == ["0", "1", "2"]

    def refused() -> bool:  # old workers of nginx may carry a connection to its end; the SuperLink refuses it too
        try:
            node.receive()
        except httpx.HTTPStatusError as error:
            return error.response.status_code == 401
        return False

    wait_for(refused)
    assert len(superlink(running.server, running.deployment).nodes()) == 3
    with pytest.raises(RemovedError, match="has removed client 3"):
        keeper(running, "3").check_newest()
    assert list(keeper(running, "3").refreshed().clients) == ["0", "1", "2", "3"]  # in force until the next start
    assert connected(running, "0").beat()
