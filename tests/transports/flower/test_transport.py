"""The network transport over a network in memory: what comes back, and what is said of what does not."""

import dataclasses
import io
import math
import os
import re

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tests.transports.memory_link import DEADLINES, Fault
from tests.transports.small_federation import Small, difference, identical, last, relabelled, small_config

from fedcollm.errors import RoundFailedError
from fedcollm.messages import (
    ClientUpdate,
    Failure,
    PhaseAnswer,
    PhaseRequest,
    RoundRecord,
    adapter_bytes,
)
from fedcollm.progress import shown
from fedcollm.runs import directory as run_directory
from fedcollm.runs.runner import run
from fedcollm.training.fine_tuning import fit
from fedcollm.transports.flower import transport as flower_transport
from fedcollm.transports.flower.transport import Deadlines
from fedcollm.transports.wire import decode, encode, longest_message

ALL = ("0", "1", "2", "3")


@pytest.fixture
def make(model_directories, word_data, tmp_path, monkeypatch):
    """Makes a small federation without secure aggregation."""

    def small(**changes) -> Small:
        return Small(small_config(model_directories, word_data, **changes), tmp_path / "disk", monkeypatch)

    return small


@pytest.fixture(scope="module")
def baseline(model_directories, word_data, tmp_path_factory):
    """The last record and the SLM's adapter of a run in one process."""
    out = tmp_path_factory.mktemp("baseline") / "run"
    run(small_config(model_directories, word_data), out)
    return last(out)


def told(record: RoundRecord) -> dict[str, object]:
    """A record without what differs between two runs of the same thing."""
    values = dataclasses.asdict(record)
    return {name: value for name, value in values.items() if name not in ("seconds", "peak_memory_bytes")}


# --- a run ---


def test_run_with_distillation_equals_the_one_in_this_process_bit_for_bit(tiny_config, tmp_path, monkeypatch):
    small = Small(tiny_config, tmp_path, monkeypatch)
    records = small.run(tmp_path / "network")
    run(tiny_config, tmp_path / "local")
    here, there = (run_directory.load_round(tmp_path / place) for place in ("network", "local"))
    assert here is not None
    assert there is not None
    assert here[1].keys() == there[1].keys() == {"slm", "llm"}
    assert all(identical(here[1][role], there[1][role]) for role in here[1])
    assert [told(r) for r in records] == [told(r) for r in run_directory.read_records(tmp_path / "local")]


def test_run_with_few_bits_both_ways_equals_the_one_in_this_process_bit_for_bit(make, baseline, tmp_path):
    small = make(**{"federation.upload": "int4", "federation.download": "int3"})
    small.run(tmp_path / "network")
    run(small.config, tmp_path / "local")
    here, there = last(tmp_path / "network"), last(tmp_path / "local")
    assert identical(here[1], there[1])
    assert told(here[0]) == told(there[0])
    assert 0 < difference(here[1], baseline[1]) < 0.05
    tensors, values = len(here[1]), sum(tensor.numel() for tensor in here[1].values())
    assert here[0].bytes_up == 4 * (-(-values // 9) + tensors)  # 9 values to a word, and a scale for each tensor
    assert here[0].bytes_down == 4 * (-(-values // 11) + tensors) + 32


@pytest.mark.parametrize("upload", ["float16", "bfloat16"])
def test_run_with_sixteen_bit_uploads_equals_the_one_in_this_process_bit_for_bit(make, baseline, tmp_path, upload):
    small = make(**{"federation.upload": upload})
    small.run(tmp_path / "network")
    run(small.config, tmp_path / "local")
    here, there = last(tmp_path / "network"), last(tmp_path / "local")
    assert identical(here[1], there[1])
    assert told(here[0]) == told(there[0])
    assert 0 < difference(here[1], baseline[1]) < 0.05
    assert (here[0].bytes_up, here[0].bytes_down) == (baseline[0].bytes_up // 2, baseline[0].bytes_down)
    sent = [answer for answer in small.answers("0") if isinstance(answer, ClientUpdate)]
    assert [adapter_bytes(answer.adapter) for answer in sent] == [here[0].bytes_up] * 2


@pytest.mark.parametrize("aggregation", ["mean", "product"])
def test_run_with_ranks_of_their_own_equals_the_one_in_this_process_bit_for_bit(make, baseline, tmp_path, aggregation):
    small = make(**{"client.ranks": [2, 4, 8], "federation.aggregation": aggregation})
    small.run(tmp_path / "network")
    run(small.config, tmp_path / "local")
    here, there = last(tmp_path / "network"), last(tmp_path / "local")
    assert identical(here[1], there[1])
    assert told(here[0]) == told(there[0])
    assert here[0].participants == ALL
    assert here[0].bytes_up == baseline[0].bytes_up * (2 + 4 + 8 + 2) // (4 * 8)


CONTROL = {"control.features": "ngrams", "control.columns": 64, "federation.rounds": 1}


@pytest.mark.parametrize("secure", [False, True])
def test_control_equals_the_one_in_this_process_bit_for_bit(make, tmp_path, secure):
    small = make(**CONTROL, **{"federation.secure_aggregation.enabled": secure})
    records = small.run(tmp_path / "network")
    run(small.config, tmp_path / "local")
    here, there = (run_directory.load_round(tmp_path / place) for place in ("network", "local"))
    assert here is not None
    assert there is not None
    assert identical(here[1]["control"], there[1]["control"])
    assert records[-1].scores == here[0].scores == there[0].scores
    assert records[-1].participants == ALL
    if not secure:
        assert told(records[-1]) == told(there[0])


def test_clients_keep_the_same_adapters_as_in_this_process_and_send_none_of_them(make, tmp_path):
    small = make(**{"client.personal": True})
    records = small.run(tmp_path / "network")
    here = run(small.config, tmp_path / "local")
    seen = dict(here.records[-1].scores)
    assert 0 <= seen.pop("personal") <= 1  # a simulation sees its clients
    assert told(records[-1]) == told(dataclasses.replace(here.records[-1], scores=seen))
    assert here.adapters.keys() == {"slm", *(f"clients/{client}" for client in ALL)}
    for client in ALL:
        own, same = (load_file(place / "adapter_model.safetensors") for place in
                     (small.own(client), here.adapters[f"clients/{client}"]))  # fmt: skip
        assert identical(own, same)
        *_, answer = small.answers(client)
        assert answer == ClientUpdate(client, 3, {})
    assert not (tmp_path / "network" / "adapters" / "clients").exists()


def test_client_that_is_gone_after_the_last_round_is_named_and_the_run_ends(make, tmp_path):
    small = make(**{"client.personal": True, "federation.rounds": 1})
    small.link.fault("2", "training", lambda reply: reply, Fault.DIES)
    record = small.run(tmp_path / "run")[-1]
    assert record.participants == ALL
    assert record.lost == {"2": "keeps no adapter of its own: not connected for 300000 s"}
    scores = run_directory.read_json(tmp_path / "run", run_directory.PERSONAL)["scores"]
    assert scores == {}


def test_adapter_that_a_client_has_is_not_replaced_and_the_server_does_not_learn_it(make, tmp_path):
    small = make(**{"client.personal": True, "federation.rounds": 1})
    small.own("1").mkdir(parents=True)
    (small.own("1") / "mine").write_text("mine")
    record = small.run(tmp_path / "run")[-1]
    assert record.lost == {}
    assert [path.name for path in small.own("1").iterdir()] == ["mine"]
    assert [small.answers(client)[-1] for client in ALL] == [ClientUpdate(client, 2, {}) for client in ALL]


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "secure"])
def test_client_that_fails_sends_as_many_messages_of_the_same_size_and_the_run_equals_the_simulation(
    make, tmp_path, monkeypatch, secure
):
    def failing(modality, slm, examples, settings, seed, where):
        return fit(modality, slm, examples, settings, seed, where) if "client 2" not in where else 1 / 0

    small = make(**{"federation.secure_aggregation.enabled": secure})
    monkeypatch.setattr("fedcollm.federation.client.fit", failing)
    records = small.run(tmp_path / "network")
    run(small.config, tmp_path / "local")
    here, there = last(tmp_path / "network"), last(tmp_path / "local")
    assert identical(here[1], there[1])
    assert told(here[0]) == told(dataclasses.replace(there[0], notes=here[0].notes))
    assert set(there[0].notes) - set(here[0].notes) == {"round 2: client 2 changed nothing: division by zero"}
    assert all("stands out" in note and not secure for note in here[0].notes)
    assert (here[0].participants, here[0].lost) == (ALL, {})
    sizes = {client: [len(data) for name, data in small.link.replies if name == client] for client in ALL}
    assert len(sizes["2"]) == len(sizes["1"]) == (10 if secure else 2)
    if secure:
        assert sizes["2"] == sizes["1"]
    assert records[0].notes == run_directory.read_records(tmp_path / "local")[0].notes


def test_answer_that_breaks_the_server_loses_its_client_only(make, tmp_path, monkeypatch):
    small, checked = make(**{"federation.rounds": 1}), flower_transport.decode

    def breaking(data, most):
        answer = checked(data, most)
        return 1 / 0 if getattr(answer, "client", "") == "2" else answer

    monkeypatch.setattr(flower_transport, "decode", breaking)
    record = small.run(tmp_path / "run")[-1]
    assert record.participants == ("0", "1", "3")
    assert dict(record.lost) == {"2": "its answer can't be handled (ZeroDivisionError)"}


@pytest.mark.parametrize("fault", [Fault.RESTARTS, Fault.RESTARTS_AFTER, Fault.RECONNECTS], ids=lambda f: f.name)
def test_client_that_comes_back_changes_nothing(make, baseline, tmp_path, fault):
    small = make()
    small.link.fault("1", "training", fault)
    small.link.fault("3", "training", fault, fault)
    small.run(tmp_path / "run")
    record, adapter = last(tmp_path / "run")
    assert told(record) == told(baseline[0])
    assert identical(adapter, baseline[1])
    assert [len(small.link.processes[client].log) for client in ALL] == [2, 3, 2, 4]


def test_repeated_request_gets_the_same_answer_and_is_not_done_twice(make, monkeypatch):
    small = make()
    small.link.fault("1", "training", Fault.RECONNECTS)
    trained = []
    client = small.link.processes["1"].answering.client
    monkeypatch.setattr(type(client), "train", _noted(type(client).train, trained))
    (answer,) = small.link.transport(monkeypatch).ask({"1": small.request()})
    assert isinstance(answer, ClientUpdate)
    first, second = (data for name, data in small.link.replies if name == "1")
    assert first == second
    assert trained == ["1"]


def _noted(train, names):
    def noting(self, request):
        names.append(self.id)
        return train(self, request)

    return noting


@pytest.mark.parametrize("calls", [1, 7, 40])
def test_superlink_that_is_gone_for_a_while_changes_nothing(make, baseline, tmp_path, calls):
    small = make()
    small.link.break_off(calls)
    small.run(tmp_path / "run")
    record, adapter = last(tmp_path / "run")
    assert told(record) == told(baseline[0])
    assert identical(adapter, baseline[1])


def test_superlink_that_breaks_off_while_clients_train_changes_nothing(make, baseline, tmp_path):
    small = make()
    small.link.fault("2", "training", lambda reply: small.link.break_off(25) or reply)
    small.run(tmp_path / "run")
    record, adapter = last(tmp_path / "run")
    assert told(record) == told(baseline[0])
    assert identical(adapter, baseline[1])


def test_superlink_that_is_gone_for_good_is_named(make, monkeypatch):
    small = make()
    small.link.break_off(math.inf)
    answers = list(small.link.transport(monkeypatch).ask(dict.fromkeys(ALL, small.request())))
    reason = "no answer within 900000 s; the SuperLink can't be reached (HTTP 503 from the SuperLink)"
    assert sorted((a.client, a.reason) for a in answers) == [(client, reason) for client in ALL]  # pyright: ignore


# --- a single request to each ---


def test_answers_come_as_they_arrive(make, monkeypatch):
    small = make()
    for client in ("0", "1", "2"):
        small.link.fault(client, "training", Fault.HELD)
    answers = small.link.transport(monkeypatch).ask(dict.fromkeys(ALL, small.request()))
    order = [next(answers).client]
    for client in ("2", "0", "1"):
        small.link.release(client)
        order.append(next(answers).client)
    assert order == ["3", "2", "0", "1"]
    assert list(answers) == []


def test_no_requests_get_no_answers(make, monkeypatch):
    assert list(make().link.transport(monkeypatch).ask({})) == []


def test_clients_are_those_of_the_federation_connected_or_not(make, monkeypatch):
    small = make()
    small.link.leave("2")
    assert small.link.transport(monkeypatch).clients() == list(ALL)


def test_client_that_never_connects_is_lost_after_its_absence(make, monkeypatch):
    small = make()
    small.link.leave("2")
    answers = {a.client: a for a in small.link.transport(monkeypatch).ask(dict.fromkeys(ALL, small.request()))}
    assert answers.keys() == set(ALL)
    assert answers["2"] == Failure("2", "not connected for 300000 s")
    assert all(isinstance(answers[client], ClientUpdate) for client in ("0", "1", "3"))
    assert "2" not in {client for client, _, _ in small.link.requests}


def test_client_that_connects_before_its_absence_is_over_takes_part(make, monkeypatch):
    small = make()
    small.link.leave("2")
    small.link.fault("0", "training", lambda reply: small.link.start("2") or reply)
    answers = list(small.link.transport(monkeypatch).ask(dict.fromkeys(("0", "2"), small.request())))
    assert sorted(answer.client for answer in answers) == ["0", "2"]
    assert {type(answer) for answer in answers} == {ClientUpdate}


@pytest.mark.parametrize("fault", [Fault.DIES, Fault.DIES_AFTER], ids=lambda f: f.name)
def test_client_that_goes_away_is_lost_after_its_absence(make, monkeypatch, fault):
    small = make()
    small.link.fault("2", "training", fault)
    answers = list(small.link.transport(monkeypatch).ask(dict.fromkeys(("0", "2"), small.request())))
    assert [a for a in answers if isinstance(a, Failure)] == [Failure("2", "not connected for 300000 s")]


LONG = Deadlines(training=9_000_000, phase=8_000_000, absence=3_000_000)  # the link's clock leaps by 50,000


def test_client_that_was_away_is_waited_for_again_only_beside_others(make, monkeypatch):
    small = make()
    transport = small.link.transport(monkeypatch, LONG)
    small.link.leave("2")
    gone = Failure("2", "not connected for 3e+06 s")
    assert gone in list(transport.ask(dict.fromkeys(("0", "2"), small.request(1))))
    before = small.link._now()
    assert gone in list(transport.ask(dict.fromkeys(("0", "2"), small.request(1))))
    assert list(transport.ask({"2": small.request(1)})) == [gone]
    assert small.link._now() - before < LONG.absence
    small.link.fault("0", "training", lambda reply: small.link.start("2") or reply)
    answers = list(transport.ask(dict.fromkeys(("0", "2"), small.request(2))))
    assert [type(answer) for answer in answers] == [ClientUpdate, ClientUpdate]


def test_removed_client_is_not_waited_for(make, monkeypatch):
    """Whether it is connected or not, and whether it was removed before or while it was asked."""
    small = make()
    link = small.link.transport(monkeypatch, LONG)
    keys = link.keys
    small.link.leave("2")
    small.link.fault("1", "training", Fault.LATE)
    looks = iter([[keys[client] for client in ("0", "1", "3")]])
    transport = dataclasses.replace(link, admitted=lambda: next(looks, [keys["0"], keys["3"]]))
    before = small.link._now()
    answers = {a.client: a for a in transport.ask(dict.fromkeys(("0", "1", "2"), small.request()))}
    assert isinstance(answers.pop("0"), ClientUpdate)
    assert answers == {client: Failure(client, "removed from the roster") for client in ("1", "2")}
    assert small.link._now() - before < LONG.absence


def test_each_kind_of_request_has_its_deadline(make, monkeypatch):
    small = make()
    for client, kind in (("0", "training"), ("1", "share")):
        small.link.fault(client, kind, Fault.LATE)
    requests = {"0": small.request(), "1": PhaseRequest("share", "00", {})}
    answers = {a.client: a for a in small.link.transport(monkeypatch).ask(requests)}
    assert answers == {
        "0": Failure("0", "no answer within 900000 s"),
        "1": Failure("1", "no answer within 800000 s"),
    }


def test_late_answer_is_not_taken_for_that_of_the_next_request(make, monkeypatch):
    small = make()
    small.link.fault("0", "training", Fault.LATE)
    transport = small.link.transport(monkeypatch)
    assert list(transport.ask({"0": small.request(1)})) == [Failure("0", "no answer within 900000 s")]
    small.link.release("0")  # before the next request is even sent
    (answer,) = transport.ask({"0": small.request(2)})
    assert isinstance(answer, ClientUpdate)
    assert answer.round_index == 2


def test_late_client_is_lost_for_its_round_only(make, tmp_path):
    small = make()
    small.link.fault("3", "training", Fault.LATE)
    _, first, second = small.run(tmp_path / "run")
    assert (first.participants, dict(first.lost)) == (("0", "1", "2"), {"3": "no answer within 900000 s"})
    assert (second.participants, dict(second.lost)) == (ALL, {})


# --- answers that are none ---


def _tensors(reply: bytes, change) -> bytes:
    update = decode(reply, 10**9)
    assert isinstance(update, ClientUpdate)
    return encode(dataclasses.replace(update, adapter={n: change(t) for n, t in update.adapter.items()}))


def _renamed(reply: bytes, name: str) -> bytes:
    update = decode(reply, 10**9)
    assert isinstance(update, ClientUpdate)
    return encode(dataclasses.replace(update, adapter={**update.adapter, name: torch.zeros(1)}))


def _named(reply: bytes, client: str) -> bytes:
    update = decode(reply, 10**9)
    assert isinstance(update, ClientUpdate)
    return encode(dataclasses.replace(update, client=client))


BAD = {
    "speaks for another": (lambda small: lambda reply: _named(reply, "0"), "speaks for client '0'"),
    "speaks for nobody": (lambda small: lambda reply: _named(reply, "x" * 1000), f"speaks for client '{'x' * 60}'"),
    "request": (lambda small: lambda reply: encode(small.request()), "sent a request instead of an answer"),
    "empty": (lambda small: lambda reply: b"", "not a message of this protocol"),
    "garbage": (lambda small: lambda reply: b"\x80\x04garbage" * 9, "not a message of this protocol"),
    "truncated": (lambda small: lambda reply: reply[:-1], "not a message of this protocol"),
    "oversized": (
        lambda small: lambda reply: os.urandom(longest_message(adapter_bytes(small.theta)) + 1),
        r"longer than the \d+ bytes allowed",
    ),
    "phase answer": (lambda small: lambda reply: encode(PhaseAnswer("2", "00", {})), "not an update"),
    "oversized, of equal parts": (
        lambda small: lambda reply: bytes(longest_message(adapter_bytes(small.theta)) + 1),
        r"longer than the \d+ bytes allowed",
    ),
    "refusal": (lambda small: lambda reply: encode(Failure("2", "I will not")), "I will not"),
    "long refusal": (lambda small: lambda reply: encode(Failure("2", "I\x1b[2J\n" * 1_500)), r"^I \[2J I"),
    "long tensor name": (lambda small: lambda reply: _renamed(reply, "x\x1b[2J" * 80), r"^tensor x \[2J"),
    "not finite": (lambda small: lambda reply: _tensors(reply, lambda t: t * torch.nan), "is not finite"),
    "other shape": (lambda small: lambda reply: _tensors(reply, lambda t: t[:1]), r"is .*, not "),
    "too large": (
        lambda small: lambda reply: _tensors(reply, lambda t: t + 1e4),
        "max_update_norm 1000",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_answer_loses_its_client_and_the_round_goes_on(make, tmp_path, kind):
    small = make(**{"federation.rounds": 1})
    change, reason = BAD[kind]
    small.link.fault("2", "training", change(small))
    record = small.run(tmp_path / "run")[-1]
    assert record.participants == ("0", "1", "3")
    assert list(record.lost) == ["2"]
    assert re.search(reason, record.lost["2"])
    assert len(record.lost["2"]) <= 500
    assert record.lost["2"].isprintable()


# --- another version of the protocol ---


def speak(small: Small, client: str, version: int) -> io.StringIO:
    """Make a client one of another version, and return the screen of its operator."""
    process, screen = small.link.processes[client], io.StringIO()
    answering = process.answering

    def answer(data: bytes) -> bytes:
        with shown(Console(file=screen, width=500)):
            return relabelled(answering(relabelled(data, 6)), version)  # to this client, it is the server that differs

    process.answering = answer  # pyright: ignore[reportAttributeAccessIssue]
    return screen


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "secure"])
@pytest.mark.parametrize("version", [3, 5], ids=["older client", "newer client"])
def test_both_operators_read_that_their_versions_differ(make, tmp_path, version, secured):
    small = make(**{"federation.rounds": 1, "federation.secure_aggregation.enabled": secured})
    screen = speak(small, "2", version)
    record = small.run(tmp_path / "run")[-1]
    assert record.participants == ("0", "1", "3")
    assert re.search(rf"protocol version {version}.* version 4", record.lost["2"])
    assert re.search(r"refused: .*protocol version 6.* version 4", screen.getvalue())


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "secure"])
def test_server_whose_version_no_client_speaks_stops_and_says_so(make, tmp_path, secured):
    small = make(**{"federation.secure_aggregation.enabled": secured})
    for client in ALL:
        speak(small, client, 3)
    with pytest.raises(RoundFailedError) as failed:
        small.run(tmp_path / "run")
    for client in ALL:
        assert re.search(rf"client {client}: [^;]*protocol version 3[^;]* version 4", str(failed.value))


# --- too few ---


def test_too_few_updates_fail_the_round_and_a_later_resume_ends_as_if_nothing_had_been(make, baseline, tmp_path):
    small, out = make(**{"federation.min_clients": 3}), tmp_path / "run"
    small.link.fault("1", "training", Fault.DIES)
    small.link.fault("2", "training", Fault.LATE)
    with pytest.raises(RoundFailedError) as failed:
        small.run(out)
    for text in (
        "round 1: 2 of 4 clients gave an update, and 3 are needed",
        "client 1: not connected for 300000 s",
        "client 2: no answer within 900000 s",
        "resume",
    ):
        assert text in str(failed.value)
    record, adapter = last(out)
    assert record.round == 0
    assert identical(adapter, small.theta)
    small.link.start("1")
    records = small.run(out, resume=True)
    assert [record.round for record in records] == [0, 1, 2]
    assert told(last(out)[0]) == told(baseline[0])
    assert identical(last(out)[1], baseline[1])


def test_nobody_there_fails_the_round(make, tmp_path):
    small = make()
    for client in ALL:
        small.link.leave(client)
    with pytest.raises(RoundFailedError, match="no client's update could be used") as failed:
        small.run(tmp_path / "run")
    assert str(failed.value).count("not connected for 300000 s") == 4


def test_fewer_than_all_give_their_own_mean(make, tmp_path):
    small = make(**{"federation.rounds": 1})
    small.link.leave("0")
    small.run(tmp_path / "run")
    updates = [small.client(name).train(small.request()) for name in ("1", "2", "3")]
    total = sum(update.examples for update in updates)
    mean = {name: sum(u.adapter[name].double() * u.examples for u in updates) / total for name in small.theta}
    assert difference(last(tmp_path / "run")[1], {n: t.float() for n, t in mean.items()}) < 1e-6  # pyright: ignore


def test_default_deadlines_are_those_of_the_configuration(make):
    configured = make().config.federation.deadlines
    defaults = type(DEADLINES)()
    assert (configured.training, configured.phase, configured.absence) == dataclasses.astuple(defaults)
