"""What a server shows of itself: its status file, page, health and metrics; the logs; and a client's audit log."""

import hashlib
import json
import logging
import stat
import time
import urllib.error
import urllib.request
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tests.transports.small_federation import small_config

from fedcollm.deploy import directories as names
from fedcollm.deploy import page, status
from fedcollm.deploy.audit import Audited, totals
from fedcollm.deploy.initialize import Choices, Site, initialize
from fedcollm.deploy.logs import logged
from fedcollm.deploy.status import Seen, Written
from fedcollm.deploy.watch import Watch, WatchedTransport
from fedcollm.errors import UserError
from fedcollm.messages import (
    ClientUpdate,
    Failure,
    FinishRequest,
    PhaseAnswer,
    PhaseRequest,
    RoundRecord,
    TrainRequest,
)
from fedcollm.progress import current, say
from fedcollm.transports.wire import encode

KEYS = {"0": b"key 0", "1": b"key 1"}
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def no_round():
    current.round = None
    yield
    current.round = None


@pytest.fixture(scope="module")
def server(model_directories, word_data, tmp_path_factory):
    """A server's directory; tests write its status file."""
    out = tmp_path_factory.mktemp("deployment") / "out"
    config = small_config(model_directories, word_data, **{"federation.secure_aggregation.enabled": True})
    initialize(config, Site("localhost", 9557, 9558), out, Choices(demo=True))
    (out / "server" / "state").mkdir()
    return out / "server"


def watch(directory) -> Watch:
    (directory / "state").mkdir(exist_ok=True)
    return Watch(directory, 4, KEYS)


def test_watch_writes_phase_round_and_who_was_lost(tmp_path):
    seen = watch(tmp_path)
    answers = {"0": PhaseAnswer("0", "", {}), "1": Failure("1", "not connected\x1b[2J for 60 s")}
    inner = SimpleNamespace(clients=lambda: ["0", "1"], ask=lambda requests: iter(answers.values()))
    transport = WatchedTransport(inner, seen)  # pyright: ignore[reportArgumentType]
    asked = transport.ask(dict.fromkeys(KEYS, TrainRequest(3, {})))
    assert next(asked) == answers["0"]
    assert status.read_written(tmp_path).phase == "clients train"
    assert status.read_written(tmp_path).round == 3
    list(asked)
    now = status.read_written(tmp_path)
    assert (now.phase, now.clients["0"].state, now.clients["0"].lost) == ("the server works", "online", "")
    assert now.clients["1"] == Seen("never seen", None, "not connected [2J for 60 s")
    list(transport.ask(dict.fromkeys(KEYS, PhaseRequest("mask", "", {}))))
    assert stat.S_IMODE((tmp_path / "state" / "status.json").stat().st_mode) == 0o600
    seen.asked(dict.fromkeys(KEYS, TrainRequest(4, {})))
    assert status.read_written(tmp_path).clients["1"].lost == ""  # a new round


def test_watch_estimates_the_time_left_by_the_rounds_of_this_process(tmp_path, monkeypatch):
    seconds = iter([100.0, 110.0, 130.0])
    clock = SimpleNamespace(monotonic=lambda: next(seconds), time=lambda: 0.0)
    monkeypatch.setattr("fedcollm.deploy.watch.time", clock)
    seen = watch(tmp_path)
    left = []
    for index in range(3):
        if index:
            seen.asked(dict.fromkeys(KEYS, TrainRequest(index, {})))
        seen.recorded(RoundRecord(index, epsilon=0.5 * index, lost={"1": "late"} if index == 2 else {}))
        left.append(seen.state.seconds_left)
    assert left == [None, 30.0, 30.0]  # 3 rounds of 10 s, then 2 rounds of the mean of 10 and 20 s
    assert (seen.state.epsilon, seen.state.clients["1"].lost) == (1.0, "late")


def test_watch_sees_who_is_connected(tmp_path):
    seen = watch(tmp_path)
    there = [SimpleNamespace(public_key=b"key 1", online_until=1025.0, heartbeat_interval=10.0)]
    seen.look(SimpleNamespace(nodes=lambda: there))  # pyright: ignore[reportArgumentType]
    assert [seen.state.clients[name].state for name in KEYS] == ["never seen", "online"]
    there.clear()
    seen.look(SimpleNamespace(nodes=lambda: there))  # pyright: ignore[reportArgumentType]
    assert seen.state.clients["1"].state == "offline"
    assert seen.state.clients["1"].last_seen == 1005.0  # its last heartbeat, though it counted as there for longer


@pytest.mark.parametrize("content", [b"", b"{", b'{"phase": 5}', b"\xff"])
def test_damaged_status_file_is_as_none(tmp_path, content):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "status.json").write_bytes(content)
    assert status.read_written(tmp_path) == Written()


def state_of(server, tmp_path) -> status.Status:
    clients = {"0": Seen("online", 1000.0), "1": Seen("offline", 900.0, HOSTILE)}
    status.write(server, Written("clients train", 2, clients, 1000.0, 75.0, 0.25, 7.5, 2, "too few"))
    return status.status(server, tmp_path)


def test_status_of_a_server_that_has_stopped_says_so(server, tmp_path):
    state = state_of(server, tmp_path)
    assert state.now.phase == "stopped while clients train"
    assert state.now.seconds_left is None
    assert state.now.clients["0"] == Seen("unknown", 1000.0)
    assert list(state.now.clients) == ["0", "1", "2", "3"]
    assert (state.roster, state.healthy, state.now.reason) == ((4, 4), False, "too few")
    assert json.loads(state.to_json())["now"]["clients"]["3"]["state"] == "never seen"


def test_stop_is_noted_with_its_reason_and_one_without_a_word_too(server, tmp_path):
    status.write(server, Written("clients train", 1))
    assert "killed" in status.status(server, tmp_path).now.reason
    with pytest.raises(UserError), status.note_stop(server):
        raise UserError("the disk is full")
    assert status.status(server, tmp_path).now.reason == "the disk is full"
    status.note_failure(server, "2 of 4 are left")
    status.note_failure(server, "1 of 4 is left")
    with pytest.raises(KeyboardInterrupt), status.note_stop(server):
        raise KeyboardInterrupt
    now = status.status(server, tmp_path).now
    assert (now.failed, now.reason) == (2, "it was stopped, by Ctrl-C or `fedcollm deploy stop`")
    assert Watch(server, 4, KEYS).state.failed == 2  # a new process counts on


def test_healthz_gives_the_reason_while_a_service_cannot_be_started(server, tmp_path):
    state = state_of(server, tmp_path)
    up = {"server": True, "superlink": True, "nginx": True}
    good = replace(state, services=up, now=replace(state.now, updated=time.time()))
    assert page.answer("/healthz", lambda: good) == (200, "text/plain", b"ok\n")
    bad = replace(good, services=up | {"nginx": False}, now=replace(good.now, trouble="port 9557 is in use"))
    assert page.answer("/healthz", lambda: bad)[::2] == (503, b"nginx is not running\nport 9557 is in use\n")


def test_client_that_was_invited_and_not_admitted_is_shown(server, tmp_path, monkeypatch):
    deployment = names.read(server, names.DEPLOYMENT, names.Deployment)
    monkeypatch.setattr(names, "read", lambda *_: deployment.model_copy(update={"clients": {}}))
    clients = status.status(server, tmp_path).now.clients
    assert {name: seen.state for name, seen in clients.items()} == dict.fromkeys("0123", "not admitted")


def test_page_shows_the_state_and_escapes_what_a_client_says(server, tmp_path):
    text = page.html(replace(state_of(server, tmp_path), last=RoundRecord(1, scores={"slm": 0.875})))
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text
    assert "0.875" in text
    assert "2 of 2" in text


def test_metrics_are_prometheus_text(server, tmp_path):
    text = page.metrics(state_of(server, tmp_path)).decode()
    lines = text.splitlines()
    assert "fedcollm_up 0.0" in lines
    assert "fedcollm_round 2.0" in lines
    assert 'fedcollm_client_online{client="0"} 0.0' in lines
    assert 'fedcollm_client_seen_timestamp_seconds{client="1"} 900.0' in lines
    assert "fedcollm_failed_rounds_total 2.0" in lines
    assert "fedcollm_round_duration_seconds 7.5" in lines
    assert "fedcollm_rounds 2.0" in lines
    expires = next(line for line in lines if line.startswith("fedcollm_certificate_expiry_timestamp_seconds "))
    assert float(expires.split()[1]) > time.time()
    kinds = dict(line.split()[2:] for line in lines if line.startswith("# TYPE"))
    assert all((name.endswith("_total")) == (kind == "counter") for name, kind in kinds.items())
    assert 'fedcollm_service_up{service="nginx"} 0.0' in lines


def get(port: int, path: str, host: str = "localhost", method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", headers={"Host": f"{host}:{port}"}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_page_answers_on_this_machine_by_its_own_name_and_reads_only(server, tmp_path):
    with page.served(server, tmp_path, "127.0.0.1:0") as port:
        assert port is not None
        assert get(port, "/")[0] == 200
        assert get(port, "/healthz") == (
            503,
            "server is not running\nsuperlink is not running\nnginx is not running\n",
        )
        assert get(port, "/metrics")[1].startswith("# HELP fedcollm_up")
        assert get(port, "/status.json")[0] == 200
        assert get(port, "/../server.key")[0] == 404
        assert get(port, "/", host="evil.example")[0] == 403  # a web page whose name was bound to 127.0.0.1
        assert get(port, "/", method="POST")[0] == 501
        with page.served(server, tmp_path, f"127.0.0.1:{port}") as second:  # the run goes on without one
            assert second is None
    with page.served(server, tmp_path, None) as none:
        assert none is None


@pytest.mark.parametrize("place", ["", "9480", "host.example:9480", "127.0.0.1:x", "127.0.0.1:70000", "1.2.3:5"])
def test_place_of_the_page_that_is_malformed_is_named(place):
    with pytest.raises(UserError, match=r"--page .*give an IPv4 address and a port"):
        page.address(place)


# --- logs ---


def test_log_has_time_level_and_round_and_one_line_for_each_message(tmp_path):
    with logged(tmp_path) as file:
        say("before")
        current.round = 3
        say("refused: two\nlines\x1b[2J", logging.WARNING)
        with pytest.raises(UserError), logged(tmp_path / "inner"):
            raise UserError("no data")
    first, second, third = file.read_text().splitlines()
    assert first.endswith(" INFO round=- before")
    assert second.endswith(" WARNING round=3 refused: two lines [2J")
    assert third.endswith(" ERROR round=3 no data")
    assert first[:2] == "20"
    assert first[23:29] == "+00:00"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    say("after")
    assert len(file.read_text().splitlines()) == 3


def test_log_as_json(tmp_path):
    with logged(tmp_path, as_json=True) as file:
        say('a "quoted" line')
    line = json.loads(file.read_text())
    assert list(line) == ["time", "level", "round", "message"]
    assert (line["level"], line["round"], line["message"]) == ("INFO", None, 'a "quoted" line')


def test_log_is_rotated(tmp_path, monkeypatch):
    monkeypatch.setattr("fedcollm.deploy.logs._BYTES", 1000)
    with logged(tmp_path) as file:
        for index in range(100):
            say(f"line {index} {'x' * 50}")
    names = sorted(path.name for path in file.parent.iterdir())
    assert names == ["fedcollm.log", *(f"fedcollm.log.{i}" for i in range(1, 5))]
    assert all(path.stat().st_size <= 1000 for path in file.parent.iterdir())


# --- the audit log ---


def test_audit_log_has_what_left_before_it_leaves(tmp_path):
    file = tmp_path / "logs" / "audit.jsonl"
    answers = [ClientUpdate("0", 1, {}, 3, 0.5, None, {}), PhaseAnswer("0", "n", {}), Failure("0", "no")]
    requests = [TrainRequest(1, {}), TrainRequest(2, {}), PhaseRequest("mask", "n", {}), FinishRequest(2, {}, "r")]
    exchanged = [
        (requests[0], answers[0], "update"),
        (requests[0], ClientUpdate("0", 0, {}, None, None, None, {}), "statistics"),
        (requests[1], answers[1], "keys"),
        (requests[2], answers[1], "masked vector"),
        (PhaseRequest("unmask", "n", {}), answers[1], "shares of secrets"),
        (requests[3], answers[1], "acknowledgement"),
        (requests[2], answers[2], "failure"),
    ]
    sent = [encode(answer) for _, answer, _ in exchanged]
    left = iter(sent)
    audited = Audited(lambda data: next(left), file)
    for request, _, _ in exchanged:
        audited(encode(request))
        current.round = 2
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert list(lines[0]) == ["time", "round", "kind", "bytes", "sha256"]
    assert (lines[0]["round"], lines[1]["round"]) == (None, 2)
    assert [line["kind"] for line in lines] == [kind for _, _, kind in exchanged]
    assert [(line["bytes"], line["sha256"]) for line in lines] == [
        (len(data), hashlib.sha256(data).hexdigest()) for data in sent
    ]
    assert totals(file) == (7, sum(map(len, sent)))
    assert totals(tmp_path / "none") == (0, 0)


def test_nothing_leaves_where_the_audit_log_cannot_be_written(tmp_path):
    file = tmp_path / "logs" / "audit.jsonl"
    file.parent.mkdir()
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"audit log in .* can't be written.*Nothing is sent"):
        Audited(lambda data: data, file)(b"secret")
    assert not (tmp_path / "elsewhere").exists()
