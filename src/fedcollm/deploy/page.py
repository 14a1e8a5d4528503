"""The status page of a server, read-only: HTML for people, `/healthz` for a monitor, `/metrics` for Prometheus."""

import contextlib
import functools
import ipaddress
import threading
import time
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

from fedcollm.deploy.status import Status, status
from fedcollm.errors import UserError
from fedcollm.progress import say

#: Where the page is unless another place is asked for: on this machine alone.
LOOPBACK = "127.0.0.1:9480"
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
_SECONDS = 10.0  # that a reader may take


@functools.cache
def _template() -> Any:
    import jinja2

    loader = jinja2.PackageLoader("fedcollm.deploy", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["ago"] = ago
    environment.filters["clock"] = clock
    return environment.get_template("status.html.j2")


def ago(moment: float | None) -> str:
    """Return how long ago a moment was, in seconds since 1970.

    >>> ago(None)
    'never'
    >>> ago(time.time() - 7322)
    '2:02:02 ago'
    """
    return "never" if moment is None else f"{clock(max(time.time() - moment, 0.0))} ago"


def clock(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds.

    >>> clock(75.4)
    '0:01:15'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def html(state: Status) -> str:
    """Return the page. Everything in it is escaped, because clients wrote some of it."""
    return str(_template().render(state=state))


def metrics(state: Status) -> bytes:
    """Return the state in Prometheus' text format.

    Raises:
        UserError: the package is not installed.
    """
    try:
        import prometheus_client
    except ImportError as error:
        raise UserError("/metrics needs prometheus-client. Install it: pip install 'fedcollm[deploy]'") from error
    registry = prometheus_client.CollectorRegistry()

    def gauge(name: str, text: str, value: float | None, **labels: str) -> None:
        if value is not None:
            made = known.get(name) or prometheus_client.Gauge(name, text, list(labels), registry=registry)
            known[name] = made
            (made.labels(**labels) if labels else made).set(value)

    known: dict[str, Any] = {}
    now, last = state.now, state.last
    gauge("fedcollm_up", "Whether everything runs and the server writes its state.", float(state.healthy))
    gauge("fedcollm_round", "Index of the present round.", now.round)
    gauge("fedcollm_rounds", "Number of rounds of the run.", state.rounds)
    gauge("fedcollm_finished_round", "Last finished round.", last.round if last else None)
    gauge("fedcollm_round_duration_seconds", "Duration of the last finished round.", now.round_seconds)
    gauge("fedcollm_left_seconds", "Estimated time to the end of the run.", now.seconds_left)
    gauge("fedcollm_epsilon", "Privacy spent so far.", now.epsilon)
    gauge("fedcollm_certificate_expiry_timestamp_seconds", "When the certificate expires.", state.expires)
    failed = prometheus_client.Counter("fedcollm_failed_rounds", "Rounds that failed and were tried again.",
                                       registry=registry)  # fmt: skip
    failed.inc(now.failed)
    for service, runs in state.services.items():
        gauge("fedcollm_service_up", "Whether a service runs.", float(runs), service=service)
    for client, seen in now.clients.items():
        gauge("fedcollm_client_online", "Whether a client is connected.", float(seen.state == "online"), client=client)
        gauge("fedcollm_client_lost", "Whether a client was lost in this round.", float(bool(seen.lost)), client=client)
        gauge("fedcollm_client_seen_timestamp_seconds", "When a client was last seen.", seen.last_seen, client=client)
    for role, score in last.scores.items() if last else ():
        gauge("fedcollm_score", "Main metric of the last finished round.", score, role=role)
    return prometheus_client.generate_latest(registry)


def answer(path: str, look: Callable[[], Status]) -> tuple[int, str, bytes]:
    """Return the HTTP status, the content type and the content for a path.

    Args:
        path: path of the request.
        look: returns the state.
    """
    if path not in ("/", "/healthz", "/metrics", "/status.json"):
        return 404, "text/plain", b"not found\n"
    state = look()
    if path == "/":
        return 200, "text/html; charset=utf-8", html(state).encode()
    if path == "/healthz":
        problems = "".join(f"{line}\n" for line in state.problems())
        return (503, "text/plain; charset=utf-8", problems.encode()) if problems else (200, "text/plain", b"ok\n")
    if path == "/status.json":
        return 200, "application/json", state.to_json().encode()
    return 200, "text/plain; version=0.0.4; charset=utf-8", metrics(state)


class _Handler(BaseHTTPRequestHandler):
    """Answer GET alone, and only for names of this machine, so that no web page elsewhere can read the state."""

    timeout = _SECONDS
    server_version, sys_version = "fedcollm", ""

    def do_GET(self) -> None:
        """Answer a request."""
        server = cast("_Server", self.server)
        host = (self.headers.get("Host") or "").rpartition(":")[0].strip("[]")
        if host not in server.hosts:
            self._send(403, "text/plain", b"another host's name\n")
            return
        try:
            self._send(*answer(self.path.partition("?")[0], server.look))
        except UserError as error:
            self._send(503, "text/plain", f"{error}\n".encode())

    def _send(self, code: int, kind: str, content: bytes) -> None:
        self.send_response(code)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a monitor asks every few seconds."""


class _Server(ThreadingHTTPServer):
    """The server of the page.

    Attributes:
        hosts: names by which it may be asked.
        look: returns the state.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], look: Callable[[], Status]):
        super().__init__(address, _Handler)
        self.hosts = {"localhost", "127.0.0.1", "::1", address[0]}
        self.look = look

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a reader that has gone."""


@contextlib.contextmanager
def served(directory: Path, out: Path, place: str | None) -> Generator[int | None, None, None]:
    """Serve the page in a thread, inside the block.

    Args:
        directory: the server's directory.
        out: run directory.
        place: HOST:PORT; None for no page. If the port is in use, the run goes on without a page.

    Yields:
        The port; None without a page.

    Raises:
        UserError: the place is malformed.
    """
    if place is None:
        yield None
        return
    host, port = address(place)
    try:
        server = _Server((host, port), lambda: status(directory, out))
    except OSError as error:
        say(f"no status page: {place} can't be used ({error.strerror}). Give another one with --page.")
        yield None
        return
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    say(f"status page: http://{host}:{server.server_port}")
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def address(place: str) -> tuple[str, int]:
    """Return the host and the port of the page.

    Raises:
        UserError: the text is not an IPv4 address and a port.

    >>> address("127.0.0.1:9480")
    ('127.0.0.1', 9480)
    """
    host, _, port = place.rpartition(":")
    try:
        number = int(port)
        ipaddress.IPv4Address("127.0.0.1" if host == "localhost" else host)
        if not 0 <= number <= 65535:
            raise ValueError
    except ValueError as error:
        raise UserError(f"--page {place!r}: give an IPv4 address and a port, such as {LOOPBACK}, or none.") from error
    return host, number
