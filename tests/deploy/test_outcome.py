"""What a client has at the end of a run, and what it is told before the first one."""

import contextlib
import datetime
import json
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import PATIENCE_SECONDS
from tests.deploy.conftest import example_rows
from tests.transports.small_federation import shared_slm, small_config

from fedcollm.data.catalogue import load_pool
from fedcollm.data.partition import split
from fedcollm.deploy import checks, directories
from fedcollm.deploy.checks import check
from fedcollm.deploy.client import build_answering
from fedcollm.deploy.directories import Membership
from fedcollm.deploy.initialize import Choices, Site, initialize
from fedcollm.deploy.roster_keeper import NotAdmittedError
from fedcollm.messages import Failure, FinishRequest, PhaseAnswer
from fedcollm.transports.wire import decode, encode


@pytest.fixture(scope="module")
def config(model_directories, word_data):
    return small_config(model_directories, word_data, **{"federation.secure_aggregation.enabled": True})


@pytest.fixture(scope="module")
def original(config, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("deployment") / "out"
    with socket.socket() as closed:  # a port on which nobody listens
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    initialize(config, Site("localhost", port), place, Choices(demo=True))
    parts = split(load_pool(config.task, config.seed), config.task, config.seed)
    (place / "clients" / "1" / "data.jsonl").write_text(example_rows(parts.private["1"]))
    return place


@pytest.fixture
def place(original, tmp_path) -> Path:
    return Path(shutil.copytree(original / "clients" / "1", tmp_path / "client"))


def told(place: Path, **changes) -> tuple[object, FinishRequest, object]:
    """Tell a client that its run is finished: (its answer, what it was told, the client)."""
    (place / "state").mkdir(exist_ok=True)
    answering = build_answering(place, place / "data.jsonl")
    slm = directories.read_config(place).slm.source
    member = directories.read(place, directories.MEMBERSHIP, Membership)
    adapter = {name: torch.full_like(tensor, 0.5) for name, tensor in shared_slm(slm)[1].items()}
    request = FinishRequest(**{"round_index": 2, "adapter": adapter, "run": member.run, **changes})
    return decode(answering(encode(request)), answering.limit_bytes), request, answering.client


def test_client_ends_with_the_adapter_its_tokenizer_a_card_and_a_report(place, monkeypatch):
    monkeypatch.setattr("fedcollm.deploy.member._LINGER_SECONDS", 0.0)
    answer, request, member = told(place)
    assert answer == PhaseAnswer("1", "finished", {})
    assert member.finished
    assert member.stopped.wait(PATIENCE_SECONDS)
    final = place / "final"
    saved = load_file(final / "adapter" / "adapter_model.safetensors")
    assert saved.keys() == request.adapter.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in request.adapter.items())
    assert {"tokenizer.json", "tokenizer_config.json", "adapter_config.json"} <= {
        file.name for file in (final / "adapter").iterdir()
    }
    card = (final / "adapter" / "README.md").read_text()
    assert "2 rounds" in card
    assert "Secure aggregation: yes" in card
    assert "Differential privacy: none" in card
    assert "belongs to client 1" in card
    assert "Private examples of this client: 8" in card
    assert "## Scores" not in card  # a client has no score of the adapter that it gets last
    report = json.loads((final / "report.json").read_text())
    assert (report["client"], report["rounds"], report["examples"], report["bytes_sent"]) == ("1", 2, 8, 0)


@pytest.mark.parametrize(
    "changes",
    [{"run": "other"}, {"adapter": {}}, {"adapter": {"x": torch.zeros(2)}}, "nan"],
    ids=["run", "missing", "unknown", "not finite"],
)
def test_end_that_does_not_fit_is_refused_and_the_client_goes_on(place, changes):
    if changes == "nan":
        slm = directories.read_config(place).slm.source
        changes = {"adapter": {name: torch.full_like(t, float("nan")) for name, t in shared_slm(slm)[1].items()}}
    answer, _, member = told(place, **changes)
    assert isinstance(answer, Failure)
    assert not member.finished
    assert not member.stopped.is_set()
    assert not (place / "final" / "report.json").exists()


# --- check ---


def test_check_says_what_is_wrong_and_changes_nothing(place):
    before = sorted(place.rglob("*"))
    found = {finding.name: finding for finding in check(place, place / "data.jsonl")}
    assert list(found) == ["keys", "data and model", "disk", "port", "certificate", "clock", "roster"]
    good = [name for name, finding in found.items() if finding.good]
    assert good == ["keys", "data and model", "disk"]
    assert found["data and model"].text.startswith("8 examples to train on and 0 to test on")
    assert "can't be reached" in found["port"].text
    assert [name for name, finding in found.items() if finding.good is False] == ["port"]  # one cause, one problem
    assert {found[name].text for name in ("certificate", "clock", "roster")} == {
        "not checked, as the server can't be reached"
    }
    assert sorted(place.rglob("*")) == before


def test_check_before_the_operator_admits_a_client_is_no_problem(place, monkeypatch):
    def not_admitted(*_):
        raise NotAdmittedError("client 1 is not admitted yet")

    for name in ("_port", "_certificate", "_clock"):
        monkeypatch.setattr(checks, name, lambda *_: "fine")
    monkeypatch.setattr(checks, "_roster", not_admitted)
    found = [(finding.name, finding.good) for finding in check(place, place / "data.jsonl")]
    assert found[-2:] == [("clock", True), ("roster", None)]


def test_check_finds_open_keys_bad_data_and_a_full_disk(place, monkeypatch):
    (place / "node.key").chmod(0o644)
    (place / "data.jsonl").write_text('{"text": "a", "kind": "fish"}\n')
    monkeypatch.setattr(checks, "_LEAST_BYTES", 2**62)
    found = {finding.name: finding for finding in check(place, place / "data.jsonl")}
    assert [found[name].good for name in ("keys", "data and model", "disk")] == [False, False, False]
    assert "chmod 600" in found["keys"].text
    assert "fish" in found["data and model"].text


@pytest.mark.parametrize(("seconds", "good"), [(0, True), (3600, False), (-3600, False)])
def test_clock_is_compared_with_the_servers(place, monkeypatch, seconds, good):
    now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    date = {"Date": now.strftime("%a, %d %b %Y %H:%M:%S GMT")}
    response = SimpleNamespace(headers=date, extensions={})
    monkeypatch.setattr(checks, "_port", lambda *_: "fine")
    monkeypatch.setattr(checks, "_asked", lambda *_: contextlib.nullcontext(response))
    finding = next(found for found in check(place, place / "data.jsonl") if found.name == "clock")
    assert finding.good == good
