"""Who is waited for before a round, and what the server says of it; and rounds that fail and are tried again."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tests.transports.small_federation import small_config

from fedcollm.config import RunConfig
from fedcollm.deploy import server, status
from fedcollm.deploy.quorum import Quorum, RosterChangedError, check_roster, needed
from fedcollm.errors import RoundFailedError, UserError
from fedcollm.messages import RoundRecord, Session, TrainRequest
from fedcollm.progress import shown
from fedcollm.transports.flower.transport import RunLostError

SECURE = {"federation.secure_aggregation.enabled": True}


@pytest.fixture
def config(model_directories, word_data) -> RunConfig:
    return small_config(model_directories, word_data)


class Clients:
    """Clients that come one a second; the clock is their own."""

    def __init__(self, coming: list[set[str]], changed_after: int = 10**9):
        self.coming, self.now, self.changed_after, self.shown = coming, 0, changed_after, list[str]()

    def quorum(self, config: RunConfig) -> Quorum:
        return Quorum(
            config,
            lambda: self.coming[min(self.now, len(self.coming) - 1)],
            lambda: self.now >= self.changed_after,
            self.shown.append,
            self.wait,
            lambda: float(self.now),
        )

    def wait(self, seconds: float) -> None:
        self.now += int(seconds)


def test_round_begins_once_enough_are_there_and_the_missing_are_named_once_a_minute(config):
    session = Session("run", 1, "nonce", ("a", "b", "c", "d"), 3, "")
    clients = Clients([{"a"}] * 130 + [{"a", "b", "z"}] * 5 + [{"a", "b", "d"}])
    file = io.StringIO()
    with shown(Console(file=file, width=200)):
        clients.quorum(config).wait_for(TrainRequest(1, {}, session=session), session.invited)
    assert clients.now == 135
    line = "waiting for clients: 1 of 4 are connected, and 3 are needed"
    assert file.getvalue().splitlines() == [f"{line}. Not connected: b, c, d"] * 3
    assert clients.shown == [line] * 3


def test_plain_round_needs_the_smallest_number_of_updates(config):
    clients = Clients([set(), {"b"}])
    clients.quorum(config).wait_for(TrainRequest(1, {}), ["a", "b"])
    assert clients.now == 1


def test_new_roster_ends_the_wait(config):
    clients = Clients([set()], changed_after=7)
    with pytest.raises(RosterChangedError):
        clients.quorum(config).wait_for(TrainRequest(1, {}), ["a", "b"])
    assert clients.now == 7


def test_nobody_is_waited_for_where_it_cannot_help(config):
    clients = Clients([set()])
    clients.quorum(config).wait_for(TrainRequest(3, {}, keep=True), ["a"])
    session = Session("run", 1, "nonce", ("a", "b", "c"), 3, "")
    clients.quorum(config).wait_for(TrainRequest(1, {}, session=session), ["a", "b"])  # c is left out
    assert clients.now == 0


def test_roster_that_is_too_short_for_a_round_says_what_to_do(model_directories, word_data, config):
    secure = small_config(model_directories, word_data, **SECURE)
    assert (needed(secure, 4), needed(config, 4)) == (3, 1)
    check_roster(secure, ["a", "b", "c"])
    check_roster(config, ["a"])
    with pytest.raises(UserError, match=r"asks 2 of the 2 clients .*a, b.* 3 are needed.*deploy admit"):
        check_roster(secure, ["a", "b"])


# --- rounds that fail ---


class Rounds:
    """Stands for the services and the rounds: each element of a plan is a record, or an error that ends them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *plans: list[Any]):
        self.plans, self.waits, self.rosters = list(plans), list[float](), 0
        monkeypatch.setattr(server, "_until_changed", self.until_changed)
        monkeypatch.setattr(server, "_wait_for_roster", self.wait_for_roster)
        monkeypatch.setattr(server.threading, "Event", lambda: SimpleNamespace(wait=self.waits.append))

    def until_changed(self, directory: Path, out: Path, config: RunConfig, again: bool):
        for step in self.plans.pop(0):
            if isinstance(step, Exception):
                raise step
            yield RoundRecord(step)

    def wait_for_roster(self, directory: Path, config: RunConfig) -> None:
        self.rosters += 1


@pytest.fixture
def held(monkeypatch, tmp_path, config):
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(server, "_held", lambda directory: server.contextlib.nullcontext(config))
    return tmp_path


def test_failed_round_is_tried_again_and_no_record_comes_twice(held, monkeypatch):
    failed = RoundFailedError("round 2: 2 of 4 clients are left.")
    plans = Rounds(monkeypatch, [0, 1, failed], [0, 1, RunLostError("stopped")], [0, 1, failed], [0, 1, 2, failed], [2])
    found = [record.round for record in server.run_rounds(held, held / "run")]
    assert found == [0, 1, 2]
    assert plans.waits == [60.0, 120.0, 240.0, 60.0]
    assert status.read_written(held).failed == 4
    assert "2 of 4 clients" in status.read_written(held).reason


def test_new_roster_is_taken_up_between_rounds_without_a_pause(held, monkeypatch):
    plans = Rounds(monkeypatch, [0, 1, RosterChangedError("changed")], [0, 1, 2])
    assert [record.round for record in server.run_rounds(held, held / "run")] == [0, 1, 2]
    assert (plans.waits, plans.rosters) == ([], 1)


def test_what_waiting_does_not_mend_ends_the_server_and_is_noted(held, monkeypatch):
    Rounds(monkeypatch, [0, UserError("config.yaml is malformed.")])
    with pytest.raises(UserError, match="malformed"):
        list(server.run_rounds(held, held / "run"))
    assert status.read_written(held).reason == "config.yaml is malformed."
