"""Directories that are incomplete, damaged or open to others, and a client made from a good one."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.torch import load_file
from tests.deploy.conftest import example_rows
from tests.transports.small_federation import shared_slm, small_config

from fedcollm.config.baselines import changed
from fedcollm.data.catalogue import load_pool
from fedcollm.data.partition import split
from fedcollm.deploy import client, directories, ownership, remembered, server, status
from fedcollm.deploy.client import build_answering, private_examples
from fedcollm.deploy.directories import Deployment, Membership
from fedcollm.deploy.initialize import Choices, Site, initialize
from fedcollm.deploy.ownership import check_directory
from fedcollm.deploy.remembered import Remembered
from fedcollm.errors import UserError
from fedcollm.federation.answered import OpenedRounds, PlainRounds
from fedcollm.messages import (
    ClientUpdate,
    Failure,
    PhaseAnswer,
    PhaseRequest,
    Session,
    TrainRequest,
    adapter_bytes,
    payload_digest,
)
from fedcollm.modalities.vision.task import ImageTask
from fedcollm.runs.build_clients import secured
from fedcollm.runs.directory import CONFIG, config_text
from fedcollm.transports.wire import decode, encode, longest_message


@pytest.fixture(scope="module")
def config(model_directories, word_data):
    return small_config(model_directories, word_data, **{"federation.secure_aggregation.enabled": True})


@pytest.fixture(scope="module")
def original(config, tmp_path_factory) -> Path:
    """A deployment; every client has its data."""
    place = tmp_path_factory.mktemp("deployment") / "out"
    initialize(config, Site("localhost"), place, Choices(demo=True))
    parts = split(load_pool(config.task, config.seed), config.task, config.seed)
    for name, examples in parts.private.items():
        (place / "clients" / name / "data.jsonl").write_text(example_rows(examples))
    return place


@pytest.fixture
def out(original, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(original, tmp_path / "out"))


def serve(out: Path) -> None:
    client.serve(out / "clients" / "1", out / "clients" / "1" / "data.jsonl")


def rewrite(file: Path, **changes) -> None:
    """Change or remove (...) values of a JSON file."""
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


# --- a client ---


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of Unix")
@pytest.mark.parametrize(
    ("name", "mode", "refused"),
    [
        ("", 0o777, True),
        ("", 0o770, True),
        ("", 0o733, True),
        ("state", 0o777, True),
        ("state/spent.json", 0o666, True),
        ("config.yaml", 0o664, True),
        ("roster.json", 0o602, True),
        ("data", 0o777, False),
        ("state", 0o755, False),
    ],
)
def test_directory_that_others_can_change_is_refused(out, name, mode, refused):
    place = out / "clients" / "1"
    for part in ("state", "data"):
        (place / part).mkdir()
    (place / "state" / "spent.json").write_text("{}")
    (place / "roster.json").write_text("{}")
    for directory in (place, place / "state"):
        directory.chmod(0o755)
    (place / name).chmod(mode)
    if not refused:
        return check_directory(place)
    for look in (check_directory, lambda place: client.serve(place, place / "data")):
        with pytest.raises(UserError, match=rf"can be changed by others \(mode {mode:o}\).*chmod go-w"):
            look(place)
    place.chmod(0o700)  # nobody else can enter it
    if name:
        check_directory(place)


def test_directory_of_another_user_is_refused(out, monkeypatch):
    if os.name != "posix":
        pytest.skip("users of Unix")
    monkeypatch.setattr(os, "geteuid", lambda: 10**6)
    monkeypatch.setattr(ownership, "_ROOT", -1)
    with pytest.raises(UserError, match="belongs to another user"):
        check_directory(out / "clients" / "1")


@pytest.mark.parametrize("name", ["node.key", "signing.key"])
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o606, 0o666, 0o601])
def test_key_that_others_may_use_is_refused_and_the_message_mends_it(out, name, mode):
    file = out / "clients" / "1" / name
    file.chmod(mode)
    with pytest.raises(UserError, match=rf"{name} can be read by others \(mode {mode:o}\)\. Run: chmod 600 {file}"):
        serve(out)


@pytest.mark.parametrize("name", ["node.key", "signing.key"])
def test_missing_key_is_named(out, name):
    (out / "clients" / "1" / name).unlink()
    with pytest.raises(UserError, match=rf"clients/1/{name} can't be read \(No such file.*restore it from a copy"):
        serve(out)


@pytest.mark.parametrize("content", [b"", b"no key", b"\xff\xfe", b"-----BEGIN PRIVATE KEY-----\nAA==\n"], ids=repr)
@pytest.mark.parametrize(
    ("name", "read"), [("node.key", directories.node_key), ("signing.key", directories.signing_key)]
)
def test_key_that_is_none_is_named(out, name, read, content):
    (out / "clients" / "1" / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"clients/1/{name} is not a private key in PEM. Restore it from a copy"):
        read(out / "clients" / "1")


def test_keys_that_were_confused_are_named(out):
    place = out / "clients" / "1"
    node, signing = (place / name for name in ("node.key", "signing.key"))
    node_content = node.read_bytes()
    node.write_bytes(signing.read_bytes())
    signing.write_bytes(node_content)
    with pytest.raises(UserError, match=r"node\.key .*elliptic curve"):
        directories.node_key(place)
    with pytest.raises(UserError, match=r"signing\.key .*Ed25519"):
        directories.signing_key(place)


def test_directory_that_is_no_clients_is_named(out, tmp_path):
    for place in (tmp_path / "nothing", out, out / "server"):
        with pytest.raises(UserError, match=r"not a client\'s directory: membership\.json"):
            client.serve(place, place)


BROKEN = [
    ({"client": ...}, "Field required"),
    ({"client": 5}, "Input should be a valid string"),
    ({"client": "../../x"}, "String should match pattern"),
    ({"address": "host:9443/x"}, "String should match pattern"),
    ({"facts": {"vocabulary_size": 0}}, "greater than or equal to 1"),
    ({"facts": {"context_length": "long"}}, "Input should be a valid integer"),
    ({"trusted": True}, "Extra inputs are not permitted"),
]


@pytest.mark.parametrize(("changes", "reason"), BROKEN, ids=lambda value: repr(value)[:30])
def test_malformed_membership_is_named(out, changes, reason):
    file = out / "clients" / "1" / "membership.json"
    rewrite(file, **changes)
    with pytest.raises(UserError) as error:
        serve(out)
    assert str(error.value).startswith(f"{file} is malformed: ")
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (
            Membership,
            '{"client":"a","run":"r","address":"host:9443","facts":{"context_length":32},"base":{}}',
        ),
        (
            Deployment,
            '{"run":"r","host":"host","port":9443,"superlink_port":9093,"invited":["a"],'
            '"clients":{"a":{"node":"PEM","signing":"00"}},"roster":{"text":"{}","signature":"00"},"removed":[],'
            '"former":["b"]}',
        ),
    ],
)
def test_form_of_a_file_is_what_the_parties_agree_on(kind, text):
    assert kind.model_validate_json(text).model_dump_json() == text


def test_membership_without_a_fact_of_the_models_is_named(out):
    rewrite(out / "clients" / "1" / "membership.json", facts={"context_length": 32})
    with pytest.raises(UserError, match="facts lack vocabulary_size"):
        serve(out)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null"], ids=repr)
def test_membership_that_is_no_json_object_is_named(out, content):
    file = out / "clients" / "1" / "membership.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"membership.json is malformed"):
        serve(out)


@pytest.mark.parametrize("content", [b"", b"[", b"name: 5\nunknown: 1", b"\xff", b"- a"], ids=repr)
def test_malformed_configuration_is_named(out, content):
    (out / "clients" / "1" / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"clients/1/config\.yaml"):
        serve(out)


def test_missing_configuration_is_named(out):
    (out / "clients" / "1" / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"clients/1/config\.yaml .*No such file"):
        serve(out)


def test_missing_data_is_named(out):
    with pytest.raises(UserError, match=r"--data .*nothing"):
        client.serve(out / "clients" / "1", out / "nothing")


def test_directory_without_a_train_file_is_named(config, tmp_path):
    columns = config.model_copy(update={"task": config.task.model_copy(update={"format": None, "name": "icd10"})})
    with pytest.raises(UserError, match=r"--data: .*no train file.*the columns description and chapter"):
        private_examples(columns, ImageTask("images", []), tmp_path)


def test_two_processes_of_one_client_exclude_each_other(out):
    from fedcollm.storage import locked

    (out / "clients" / "1" / "state").mkdir()
    with locked(out / "clients" / "1" / "state"), pytest.raises(UserError, match="is in use"):
        serve(out)


# --- what a client remembers ---


def test_opened_rounds_are_on_disk_at_once(tmp_path):
    opened = Remembered(tmp_path / "opened.json")
    assert not (tmp_path / "opened.json").exists()
    opened["run/1"] = ["0", "1", "2"]
    assert dict(Remembered(tmp_path / "opened.json")) == {"run/1": ["0", "1", "2"]}
    opened["run/2"] = ["0", "1", "2", "3"]
    again = Remembered(tmp_path / "opened.json")
    assert list(again) == ["run/1", "run/2"]
    assert len(again) == 2
    assert again.get("run/3", "none") == "none"


def test_opened_round_is_never_forgotten(tmp_path):
    opened = Remembered(tmp_path / "opened.json")
    opened["run/1"] = ["0"]
    with pytest.raises(TypeError, match="never forgotten"):
        del opened["run/1"]


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failing_once(monkeypatch, name: str) -> None:
    """Let the first write fail, as on a disk that is full for a moment."""
    real = getattr(remembered, name)
    answers = iter([full])
    monkeypatch.setattr(remembered, name, lambda *a, **k: next(answers, real)(*a, **k))


@pytest.mark.parametrize("step", ["write_atomically", "_flush"])
def test_what_the_disk_does_not_take_is_not_remembered_and_stops_the_answer(tmp_path, monkeypatch, step):
    memory = Remembered[str](tmp_path / "spent.json")
    memory["rounds"] = "one"
    failing_once(monkeypatch, step)
    with pytest.raises(UserError, match="No space left"):
        memory.setdefault("statistics/run", "digest")
    assert dict(memory) == {"rounds": "one"}
    assert memory.setdefault("statistics/run", "digest") == "digest"
    assert dict(Remembered(tmp_path / "spent.json")) == {"rounds": "one", "statistics/run": "digest"}


def test_passing_disk_error_leaves_no_gap_in_what_a_restarted_client_knows(tmp_path, monkeypatch):
    spent, opened = Remembered[Any](tmp_path / "spent.json"), Remembered[list[str]](tmp_path / "opened.json")
    request = TrainRequest(1, {"w": torch.zeros(1)}, run="run")
    plain, sums = PlainRounds(spent, "run"), OpenedRounds(opened, "run", 1, "θ")
    for note in (lambda: plain.note(request), lambda: sums.note(["a"])):
        failing_once(monkeypatch, "write_atomically")
        with pytest.raises(UserError, match="No space left"):
            note()
        note()
    assert Remembered(tmp_path / "spent.json").keys() == {"answered/run"}
    assert dict(Remembered(tmp_path / "opened.json")) == {"run/θ/θ": ["a"], "run/1": ["a"]}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"], ids=repr)
def test_damaged_memory_stops_the_client(out, content):
    state = out / "clients" / "1" / "state"
    state.mkdir()
    (state / "opened.json").write_bytes(content)
    with pytest.raises(UserError, match=r"state/opened\.json .*guards"):
        serve(out)


@pytest.mark.parametrize(("clients", "admitted", "least"), [(10, 8, 7), (10, 7, 7), (4, 3, 3), (4, 4, 3)])
def test_sum_is_over_as_many_clients_as_was_promised_however_few_are_admitted(config, clients, admitted, least):
    keys = {str(number): Ed25519PrivateKey.generate().public_key() for number in range(admitted)}
    settings = secured(changed(config, {"task.clients": clients, "federation.participants": None}), keys)
    assert settings is not None
    assert settings.threshold_of(admitted) == least


def test_roster_of_fewer_clients_than_were_promised_is_refused(config):
    keys = {str(number): Ed25519PrivateKey.generate().public_key() for number in range(6)}
    with pytest.raises(UserError, match="promised a sum over at least 7 clients, and a round asks 6"):
        secured(changed(config, {"task.clients": 10, "federation.participants": None}), keys)


# --- a whole client ---


def test_client_made_from_its_directory_answers_its_run_and_no_other(out, config):
    place = out / "clients" / "1"
    (place / "state").mkdir()
    answering = build_answering(place, place / "data.jsonl")
    membership = directories.read(place, directories.MEMBERSHIP, Membership)
    theta = shared_slm(config.slm.source)[1]
    settings = answering.client.inner.settings  # pyright: ignore[reportAttributeAccessIssue]
    payload = payload_digest(theta, {"evaluate": True, "agreed": settings.to_wire()})

    def answer(run: str):
        session = Session.fresh(run, 1, "0123", payload=payload)
        request = TrainRequest(1, theta, session=session, run=run)
        return session, decode(answering(encode(request)), answering.limit_bytes)

    _, refusal = answer("other")
    assert refusal == Failure("1", f"a session of run 'other', and this client is part of {membership.run!r}")
    session, keys = answer(membership.run)
    assert isinstance(keys, PhaseAnswer)
    assert (keys.client, list(keys.items)) == ("1", ["keys"])
    unopened = decode(answering(encode(PhaseRequest("unmask", session.nonce, {}))), answering.limit_bytes)
    assert isinstance(unopened, Failure)
    assert not (place / "state" / "opened.json").exists()


STATISTICS = {"features": "ngrams", "columns": 3000}


@pytest.mark.parametrize(
    "values",
    [
        {"control": STATISTICS, "federation.rounds": 1},
        {"server.pseudo_labels": STATISTICS, "server.epochs": 1, "task.unlabelled_size": 8},
    ],
    ids=["control", "pseudo-labels"],
)
def test_client_answers_a_request_for_statistics_that_is_longer_than_any_adapter(out, config, values):
    place = out / "clients" / "1"
    (place / "state").mkdir()
    (place / CONFIG).write_text(config_text(changed(config, values)))
    answering = build_answering(place, place / "data.jsonl")
    membership = directories.read(place, directories.MEMBERSHIP, Membership)
    zeros = {"statistics/gram": torch.zeros(3000 * 3001 // 2), "statistics/targets": torch.zeros(3000, 2)}
    settings = answering.client.inner.settings  # pyright: ignore[reportAttributeAccessIssue]
    payload = payload_digest(zeros, {"evaluate": False, "agreed": settings.to_wire()})
    session = Session.fresh(membership.run, 0, "0123", payload=payload)
    request = encode(TrainRequest(0, zeros, evaluate=False, session=session, run=membership.run))
    assert len(request) > longest_message(adapter_bytes(shared_slm(config.slm.source)[1]))
    assert isinstance(decode(answering(request), answering.limit_bytes), PhaseAnswer)


def test_client_needs_no_file_that_the_slm_starts_from_and_knows_the_style_of_the_task(out, config):
    place = out / "clients" / "1"
    (place / "state").mkdir()
    values = {"slm.adapter.start": "/on/the/server", "task.format.joiner": " : ", "task.max_length": 8}
    (place / CONFIG).write_text(config_text(changed(config, values)))
    client = build_answering(place, place / "data.jsonl").client.inner.client  # pyright: ignore[reportAttributeAccessIssue]
    assert (client.modality.style.joiner, client.modality.context_length) == (" : ", 8)


def test_client_cleans_its_own_examples_as_a_simulated_one_does(out, config):
    place = out / "clients" / "1"
    (place / "state").mkdir()
    lines = (place / "data.jsonl").read_text().splitlines()
    (place / "data.jsonl").write_text("\n".join([*lines, *lines]) + "\n")
    (place / CONFIG).write_text(config_text(changed(config, {"task.cleaning": {"labels": "keep"}})))
    client = build_answering(place, place / "data.jsonl").client.inner.client  # pyright: ignore[reportAttributeAccessIssue]
    assert [int(example.id) for example in client.examples] == list(range(1, len(lines) + 1))


def test_client_that_would_heal_its_own_slm_does_not_start(out, config):
    place = out / "clients" / "1"
    (place / CONFIG).write_text(config_text(changed(config, {"slm.layers": 1, "slm.heal": {"size": 100}})))
    with pytest.raises(
        UserError, match=r"slm\.heal: each machine .* fedcollm shrink .* --set heal\.size=100 --out DIR"
    ):
        serve(out)


# --- the server ---


def test_server_that_would_heal_its_own_slm_does_not_start(out, config):
    (out / "server" / CONFIG).write_text(config_text(changed(config, {"slm.layers": 1, "slm.heal": {}})))
    with pytest.raises(UserError, match=r"slm\.heal: each machine"), server.serving(out / "server"):
        pass


@pytest.mark.parametrize("name", ["server.key", "superexec.key"])
def test_servers_secret_that_others_may_use_is_refused(out, name):
    (out / "server" / name).chmod(0o644)
    with pytest.raises(UserError, match=rf"{name} can be read by others \(mode 644\)"), server.serving(out / "server"):
        pass


@pytest.mark.parametrize("name", ["server.key", "superexec.key"])
def test_servers_missing_secret_is_named(out, name):
    (out / "server" / name).unlink()
    with pytest.raises(UserError, match=rf"server/{name} can't be read"), server.serving(out / "server"):
        pass


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"port": 0}, "greater than or equal to 1"),
        ({"superlink_port": 70000}, "less than or equal to 65535"),
        ({"clients": {"0": {"node": "x"}}}, "Field required"),
        ({"run": ...}, "Field required"),
    ],
    ids=repr,
)
def test_malformed_deployment_is_named(out, changes, reason):
    file = out / "server" / "deployment.json"
    rewrite(file, **changes)
    with pytest.raises(UserError) as error:
        directories.read(out / "server", directories.DEPLOYMENT, Deployment)
    assert str(error.value).startswith(f"{file} is malformed: ")
    assert reason in str(error.value)


def test_directory_that_is_no_servers_is_named(out):
    for function in (status.stop_all, lambda place: status.status(place, place), lambda place: list(
        server.run_rounds(place, place))):  # fmt: skip
        with pytest.raises(UserError, match=r"not a server\'s directory: deployment\.json"):
            function(out / "clients" / "1")


def test_client_keeps_its_own_adapter_in_its_directory_and_tells_nothing_under_secure_aggregation(out, config):
    place = out / "clients" / "1"
    (place / "state").mkdir()
    (place / CONFIG).write_text(config_text(changed(config, {"client.personal": True})))
    answering = build_answering(place, place / "data.jsonl")
    membership = directories.read(place, directories.MEMBERSHIP, Membership)
    theta = shared_slm(config.slm.source)[1]
    request = TrainRequest(3, theta, run=membership.run, keep=True)
    assert decode(answering(encode(request)), answering.limit_bytes) == ClientUpdate("1", 3, {})
    own = load_file(place / "adapter" / "adapter_model.safetensors")
    assert own.keys() == theta.keys()
    assert not all(torch.equal(own[name], theta[name]) for name in theta)


def test_adapter_that_the_client_has_kept_is_never_overwritten_and_the_answer_does_not_show_it(out, config):
    place = out / "clients" / "1"
    (place / "config.yaml").write_text(config_text(changed(config, {"client.personal": True})))
    for name in ("state", "adapter"):
        (place / name).mkdir()
    (place / "adapter" / "mine").touch()
    answering = build_answering(place, place / "data.jsonl")
    membership = directories.read(place, directories.MEMBERSHIP, Membership)
    request = TrainRequest(3, shared_slm(config.slm.source)[1], run=membership.run, keep=True)
    assert decode(answering(encode(request)), answering.limit_bytes) == ClientUpdate("1", 3, {})
    assert [file.name for file in (place / "adapter").iterdir()] == ["mine"]
    assert "is not replaced" in (place / "state" / "failures.log").read_text(encoding="utf-8")


def test_only_the_operator_reads_why_a_training_failed(out, config, monkeypatch):
    place = out / "clients" / "1"
    (place / "config.yaml").write_text(config_text(changed(config, {"federation.secure_aggregation.enabled": False})))
    (place / "state").mkdir()
    answering = build_answering(place, place / "data.jsonl", 5.0)
    waits: list[float] = []
    answering.wait = waits.append
    monkeypatch.setattr("fedcollm.federation.client.fit", lambda *args: 1 / 0)
    run = directories.read(place, directories.MEMBERSHIP, Membership).run
    answer = decode(answering(encode(TrainRequest(1, shared_slm(config.slm.source)[1], run=run))), 10**8)
    assert isinstance(answer, ClientUpdate)
    assert 0 < waits[0] <= 5.0
    log = place / "state" / "failures.log"
    assert log.stat().st_mode & 0o777 == 0o600
    (line,) = log.read_text(encoding="utf-8").splitlines()
    assert line.endswith(
        "client 1, round 1: failed, and the answer does not show it: ZeroDivisionError: division by zero"
    )


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e9])
def test_answers_wait_for_a_number_of_seconds(out, seconds):
    with pytest.raises(UserError, match=r"--answer-after .*: give a number of seconds from 0 to 86400"):
        client.serve(out / "clients" / "1", out / "clients" / "1" / "data.jsonl", answer_after=seconds)


def test_client_with_more_examples_than_agreed_does_not_start(out, config):
    place = out / "clients" / "1"
    (place / "config.yaml").write_text(config_text(changed(config, {"federation.secure_aggregation.max_weight": 2})))
    with pytest.raises(UserError, match="examples, more than the 2 that secure aggregation was set up for"):
        build_answering(place, place / "data.jsonl")


@pytest.mark.parametrize("content", ["[]", "3", '"a"', "null", "{", ""])
def test_damaged_count_of_what_was_given_stops_the_client(out, content):
    place = out / "clients" / "1"
    (place / "state").mkdir()
    (place / "state" / "spent.json").write_text(content)
    with pytest.raises(UserError, match=r"spent\.json can't be read .*It guards this client's data"):
        build_answering(place, place / "data.jsonl")
