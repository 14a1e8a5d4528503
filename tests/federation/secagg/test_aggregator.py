"""Rounds under secure aggregation, on tiny models in one process: the same mean, and no client's update in sight."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests import parties
from tests.parties import add_adapter

from fedcollm.errors import RefusalError, RoundFailedError
from fedcollm.federation.client import Client
from fedcollm.federation.download_format import download_format
from fedcollm.federation.limits import Limits
from fedcollm.federation.operator import Operator
from fedcollm.federation.secagg.aggregator import SecureAggregator, SimulatedQuantization
from fedcollm.federation.secagg.client import SecureClient
from fedcollm.federation.secagg.fixed_point import STATISTICS, FixedPoint, RangeError, pack, statistics
from fedcollm.federation.secagg.settings import SecureSettings
from fedcollm.federation.server import Server
from fedcollm.messages import (
    ClientUpdate,
    Failure,
    PhaseAnswer,
    PhaseRequest,
    RoundRecord,
    Score,
    Session,
    TrainRequest,
    adapter_bytes,
    payload_digest,
)
from fedcollm.modalities.text.task import TextExample, TextTask
from fedcollm.models.adapters import read_adapter
from fedcollm.models.pretrained import load_causal_lm
from fedcollm.training.fine_tuning import fit
from fedcollm.transports.local import LocalTransport

IDS = ("a", "b", "c", "d")
PARTS = {"a": ("cat",), "b": ("dog", "bird"), "c": ("red", "green", "blue"), "d": ("good",)}
ANIMALS = ("cat", "dog", "bird")


def example(noun: str) -> TextExample:
    answer = 0 if noun in ANIMALS else 1
    return TextExample(noun, f"the {noun} is a :", ("animal", "colour"), answer, ("animal", "colour"))


@pytest.fixture
def clients(tokenizer, model_directories) -> dict[str, Client]:
    task = TextTask("toy", tokenizer, 16, 32)
    slm = add_adapter(load_causal_lm(model_directories["slm"], torch.float32), rank=8, seed=1)
    test = [example(noun) for noun in ("cat", "red", "dog")]
    return {
        name: parties.client(name, task, slm, [example(noun) for noun in nouns], test, learning_rate=1e-2, run="run")
        for name, nouns in PARTS.items()
    }


class Wire(LocalTransport):
    """A local transport that notes all answers and can lose clients: client id to the phase that it does not reach."""

    def __init__(self, clients, losses=None):
        super().__init__(clients)
        self.losses = losses or {}
        self.answers: list[object] = []

    def ask(self, requests):
        for client, request in requests.items():
            phase = request.phase if isinstance(request, PhaseRequest) else "advertise"
            if self.losses.get(client) == phase:
                yield Failure(client, f"killed in phase {phase}")
                continue
            self.answers += list(super().ask({client: request}))
            yield self.answers[-1]  # pyright: ignore[reportReturnType]


def secured(clients, uniform=False, value_range=1.0, losses=None) -> tuple[Wire, SecureSettings]:
    keys = {name: Ed25519PrivateKey.generate() for name in clients}
    roster = {name: key.public_key() for name, key in keys.items()}
    encoding = FixedPoint(len(clients), 1 if uniform else 64, value_range)
    settings = SecureSettings(encoding, roster, None, uniform)
    limits = Limits(value_range=value_range)
    members = {
        name: SecureClient(parties.agreeing(client, limits=limits), settings, len(clients), keys[name])
        for name, client in clients.items()
    }
    return Wire(members, losses), settings


def server(clients, uniform=False, **secure) -> Server:
    one = clients["a"]
    rule = "uniform" if uniform else "mean"
    made = parties.server(
        one.modality, one.slm, None, LocalTransport(clients), [], one.test, aggregation=rule, run=one.run
    )
    if secure:
        made.transport, settings = secured(clients, uniform, **{k: v for k, v in secure.items() if k != "on"})
        made.aggregator = SecureAggregator(settings)
    return made


def largest_difference(one, other) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("uniform", [False, True], ids=["by examples", "uniform"])
def test_two_rounds_end_as_without_secure_aggregation(clients, uniform):
    start = read_adapter(clients["a"].slm)
    plain = server(clients, uniform)
    expected = [plain.run_round(index) for index in (1, 2)]
    final = plain.adapter
    secure = server(clients, uniform, on=True)
    secure.adapter = start
    records = [secure.run_round(index) for index in (1, 2)]
    assert largest_difference(secure.adapter, start) > 1e-3
    assert largest_difference(secure.adapter, final) < 1e-5
    for record, other in zip(records, expected, strict=True):
        assert record.participants == other.participants == IDS
        assert record.scores == pytest.approx(other.scores)
        assert record.losses == pytest.approx(other.losses, abs=1e-4)
        assert record.seconds["clients"] > 0


def test_few_bits_both_ways_end_as_their_simulation_and_say_what_was_clipped(clients):
    start = read_adapter(clients["a"].slm)
    encoding, download = FixedPoint(4, 3, 0.003, bits=4), download_format("int3", start)
    ends: list[tuple[dict[str, torch.Tensor], RoundRecord]] = []
    for on in (False, True):
        one = server({name: parties.agreeing(client, download=download) for name, client in clients.items()})
        if on:
            one.transport, settings = secured(clients)
            settings = dataclasses.replace(settings, encoding=encoding, download=download)
            for member in one.transport._clients.values():
                member.settings = settings
                member.client = parties.agreeing(member.client, limits=Limits())
            one.aggregator = SecureAggregator(settings)
        else:
            one.aggregator = SimulatedQuantization(one.federation, encoding=encoding)
        one.adapter, one.download = start, download
        records = [one.run_round(index) for index in (1, 2)]
        ends.append((one.adapter, records[-1]))
    (simulated, record), (masked, other) = ends
    assert largest_difference(simulated, start) > 1e-3
    assert all(torch.equal(masked[name], tensor) for name, tensor in simulated.items())
    assert record.notes == other.notes
    assert "% of the changes were clipped to ±0.003" in record.notes[0]
    values = sum(tensor.numel() for tensor in start.values())
    words = -(-values // 10)  # 10 values to a word: base 9
    assert record.bytes_up == 4 * (words + 4 * len(STATISTICS))
    assert record.bytes_up < other.bytes_up < record.bytes_up + 1500
    assert record.bytes_down == 4 * (-(-values // 11) + len(start)) + 32 < other.bytes_down


def test_bytes_are_one_word_a_parameter_and_little_more(clients):
    secure = server(clients, on=True)
    record = secure.run_round(1)
    values = sum(tensor.numel() for tensor in secure.adapter.values())
    assert 4 * values < record.bytes_up < 4 * values + 1500
    assert adapter_bytes(secure.adapter) < record.bytes_down < adapter_bytes(secure.adapter) + 2500


def test_no_answer_holds_an_update_or_a_single_clients_numbers(clients):
    secure = server(clients, on=True)
    theta = secure.adapter
    secure.run_round(1)
    answers = secure.transport.answers  # pyright: ignore[reportAttributeAccessIssue]
    assert len(answers) == 5 * len(IDS)
    assert {type(answer) for answer in answers} == {PhaseAnswer}
    sent = {a.client: a.items["vector"] for a in answers if "vector" in a.items}
    for name, client in clients.items():
        update = client.train(TrainRequest(1, theta, run="run"))
        delta = {key: tensor - theta[key] for key, tensor in update.adapter.items()}
        plain = secure.aggregator.settings.encoding.encode(delta, update.examples, statistics(update)).tobytes()  # pyright: ignore
        assert len(plain) == len(sent[name])
        same = sum(x == y for x, y in zip(plain, sent[name], strict=True)) / len(plain)
        assert same < 0.02  # 1 in 256 by chance


@pytest.mark.parametrize("phase", ["advertise", "share", "mask"])
def test_round_goes_on_without_a_lost_client(clients, phase):
    start = read_adapter(clients["a"].slm)
    secure = server(clients, losses={"b": phase})
    secure.adapter = start
    record = secure.run_round(1)
    assert record.participants == ("a", "c", "d")
    assert dict(record.lost) == {"b": f"{phase}: killed in phase {phase}"}
    plain = server({name: client for name, client in clients.items() if name != "b"})
    plain.adapter = start
    plain.run_round(1)
    assert largest_difference(secure.adapter, plain.adapter) < 1e-5


@pytest.mark.parametrize("phase", ["confirm", "unmask"])
def test_client_lost_after_its_vector_arrived_still_counts(clients, phase):
    record = server(clients, losses={"b": phase}).run_round(1)
    assert record.participants == IDS


@pytest.mark.parametrize("phase", ["advertise", "share", "mask", "confirm", "unmask"])
def test_too_few_clients_end_the_round_and_keep_the_state_and_the_round_can_be_tried_again(clients, phase):
    secure = server(clients, losses={"b": phase, "c": phase})
    before = secure.adapter
    with pytest.raises(RoundFailedError, match=f"2 of 4 clients are left after phase {phase}.* and 3 are needed"):
        secure.run_round(1)
    assert secure.adapter is before
    secure.transport.losses = {}  # pyright: ignore[reportAttributeAccessIssue]
    again = secure.run_round(1)
    assert again.participants == IDS


def test_value_outside_the_range_at_all_clients_names_the_tensor_and_keeps_the_state(clients):
    secure = server(clients, value_range=1e-6)
    before = secure.adapter
    with pytest.raises(RangeError, match=r"lora_B.weight changed by .* outside the fixed-point range of ±1e-06"):
        secure.run_round(1)
    assert secure.adapter is before


@pytest.mark.parametrize("on", [False, True], ids=["plain", "secure"])
def test_client_that_fails_changes_nothing_and_only_the_simulation_says_so(clients, on, monkeypatch):
    def failing(modality, slm, examples, settings, seed, where):
        return fit(modality, slm, examples, settings, seed, where) if "client b" not in where else 1 / 0

    start = read_adapter(clients["a"].slm)
    monkeypatch.setattr("fedcollm.federation.client.fit", failing)
    one = server(clients, on=True) if on else server(clients)
    one.adapter = start
    record = one.run_round(1)
    assert (record.participants, dict(record.lost)) == (IDS, {})
    assert record.notes == ("round 1: client b changed nothing: division by zero",)
    updates = {name: client.train(TrainRequest(1, start, run="run")) for name, client in clients.items()}
    total = sum(update.examples for update in updates.values())
    for name, tensor in start.items():
        moved = sum((u.adapter[name] - tensor).double() * u.examples for c, u in updates.items() if c != "b") / total
        assert torch.allclose(one.adapter[name], tensor + moved.float(), atol=1e-6)


def test_more_clients_than_the_fixed_point_holds_are_refused(clients):
    secure = server(clients, on=True)
    settings = dataclasses.replace(secure.aggregator.settings, encoding=FixedPoint(3, 64, 1.0))
    secure.aggregator = SecureAggregator(settings)
    with pytest.raises(RoundFailedError, match="4 clients are asked, and the fixed point is set up for 3"):
        secure.run_round(1)


def test_client_that_lies_about_the_number_of_clients_ends_the_round(clients, monkeypatch):
    def lying(update):
        return statistics(update) | ({"clients": 9.0} if update.client == "c" else {})

    monkeypatch.setattr("fedcollm.federation.secagg.fixed_point.statistics", lying)
    one = server(clients, on=True)
    before = one.adapter
    record = one.run_round(1)
    assert record.participants == ()
    assert "the sums of 4 clients speak of 12 clients" in record.notes[0]
    assert 0 < largest_difference(one.adapter, before) < 1e-6  # another θ, but not by a step


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ({"examples": 1e6}, "4 clients and 1e+06 examples (at most 64 each)"),
        ({"examples": 3.5}, "examples (at most 64 each)"),
        ({"examples": 0.0, "clients": 0.0}, "3 clients and"),
        ({"loss": 1e9}, "a mean loss of"),
        ({"score": 5.0}, "4 scores with a sum of"),
        ({"scored": 7.0}, "10 scores with a sum of"),
        ({"seconds_clients": 1e11}, "seconds that no round can take"),
    ],
    ids=str,
)
def test_sum_that_honest_clients_cannot_have_is_not_used(clients, monkeypatch, lie, said):
    def lying(update):
        return statistics(update) | (lie if update.client == "c" else {})

    monkeypatch.setattr("fedcollm.federation.secagg.fixed_point.statistics", lying)
    record = server(clients, on=True).run_round(1)
    assert record.participants == ()
    assert said in record.notes[0]


@pytest.mark.parametrize(
    ("limits", "change", "said"),
    [({}, 2.0, "outside the fixed-point range of ±1"), ({"max_update_norm": 0.5}, 0.9, "at most 0.5")],
)
def test_mean_that_is_larger_than_any_clients_change_is_not_used(clients, monkeypatch, limits, change, said):
    def unbounded(self, update, theta, uniform):
        count, step = sum(t.numel() for t in theta.values()), update.examples * 2.0**self.fraction_bits
        return pack(np.full(count, round(change * step), np.int64), statistics(update))

    one = server(clients, on=True)
    one.aggregator = SecureAggregator(dataclasses.replace(one.aggregator.settings, **limits))
    monkeypatch.setattr(FixedPoint, "encode_update", unbounded)
    record = one.run_round(1)
    assert record.participants == ()
    assert said in record.notes[0]


def test_server_that_sends_one_client_another_adapter_loses_it(clients):
    secure = server(clients, on=True)
    honest = secure.transport.ask

    def ask(requests):
        first = requests.get("a")
        if isinstance(first, TrainRequest):
            zero = {name: torch.zeros_like(tensor) for name, tensor in first.adapter.items()}
            requests = {**requests, "a": dataclasses.replace(first, adapter=zero)}
        return honest(requests)

    secure.transport.ask = ask  # pyright: ignore[reportAttributeAccessIssue]
    record = secure.run_round(1)
    assert record.participants == ("b", "c", "d")
    assert "not what the session says" in record.lost["a"]


# --- what a client refuses ---


def member(clients) -> SecureClient:
    transport, _ = secured(clients)
    return transport._clients["a"]  # pyright: ignore[reportReturnType]


def invitation(one: SecureClient, ids=IDS, run="run", index=1, **changes) -> TrainRequest:
    """A request to train with a session that fits it."""
    theta = read_adapter(one.client.slm)
    agreed = {"evaluate": True, "agreed": one.settings.to_wire()}
    session = Session.fresh(run, index, ids, payload=payload_digest(theta, agreed))
    return dataclasses.replace(TrainRequest(1, theta, session=session, run="run"), **changes)


def test_plain_update_is_refused_by_a_client_of_secure_aggregation(clients):
    one = member(clients)
    with pytest.raises(RefusalError, match="a plain update was asked for"):
        one.answer(TrainRequest(1, read_adapter(clients["a"].slm)))


def test_invitation_that_fits_is_accepted(clients):
    assert list(member(clients).answer(invitation(member(clients))).items) == ["keys"]


def test_adapter_that_is_not_the_one_of_the_session_is_refused_untrained(clients, monkeypatch):
    monkeypatch.setattr(Client, "train", lambda self, request: pytest.fail("trained"))
    one = member(clients)
    request = invitation(one)
    name = min(request.adapter)
    changed = {**request.adapter, name: request.adapter[name] + 1e-3}
    for bad in (dataclasses.replace(request, adapter=changed), dataclasses.replace(request, evaluate=False)):
        with pytest.raises(RefusalError, match="not what the session says that all clients were sent"):
            one.answer(bad)


def test_session_of_another_run_is_refused(clients):
    one = member(clients)
    with pytest.raises(RefusalError, match="a session of run 'other', and this client is part of 'run'"):
        one.answer(invitation(one, run="other"))


@pytest.mark.parametrize(("agreed", "asked"), [(None, 4), (4, 3)])
def test_other_threshold_than_agreed_is_refused_untrained(clients, agreed, asked, monkeypatch):
    one = member(clients)
    one.settings = dataclasses.replace(one.settings, threshold=agreed)
    request = invitation(one)
    assert request.session is not None
    monkeypatch.setattr(Client, "train", None)
    with pytest.raises(RefusalError, match=f"a threshold of {asked} clients, and {agreed or 3} were agreed on"):
        one.answer(dataclasses.replace(request, session=dataclasses.replace(request.session, threshold=asked)))


def test_parties_that_agreed_on_other_thresholds_do_not_work_together(clients):
    settings = member(clients).settings
    assert settings.to_wire() != dataclasses.replace(settings, threshold=4).to_wire()


def test_smaller_session_than_agreed_is_refused(clients):
    one = member(clients)
    with pytest.raises(RefusalError, match="3 clients are invited, fewer than 4"):
        one.answer(invitation(one, ids=("a", "b", "c")))


def test_session_of_another_round_is_refused(clients):
    one = member(clients)
    with pytest.raises(RefusalError, match="a plain update was asked for"):
        one.answer(invitation(one, index=2))


def test_session_of_two_is_refused_before_anything_is_trained(clients, monkeypatch):
    one = member(clients)
    monkeypatch.setattr(Client, "train", lambda self, request: pytest.fail("trained"))
    with pytest.raises(RefusalError, match="at least 3"):
        one.answer(invitation(one, ids=("a", "b")))


def test_phase_of_another_session_is_refused(clients):
    one = member(clients)
    one.answer(invitation(one))
    with pytest.raises(RefusalError, match="not the session"):
        one.answer(PhaseRequest("share", "00" * 16, {}))


@pytest.mark.parametrize("phase", ["advertise", "_enter", "encrypt"])
def test_phase_that_does_not_exist_is_refused(clients, phase):
    one = member(clients)
    nonce = one.answer(invitation(one)).nonce
    with pytest.raises(RefusalError, match="there is no phase"):
        one.answer(PhaseRequest(phase, nonce, {}))


def test_client_without_secure_aggregation_refuses_a_session(clients):
    session = Session.fresh("run", 1, IDS)
    with pytest.raises(RefusalError, match="not set up for secure aggregation"):
        clients["a"].answer(TrainRequest(1, {}, session=session))


# --- statistics ---


def test_statistics_are_sums_by_hand():
    update = ClientUpdate("a", 1, {}, 5, 0.5, Score({"accuracy": 3.0}, 4), {"clients": 2.0, "evaluation": 1.0})
    assert list(statistics(update)) == list(STATISTICS)
    assert list(statistics(update).values()) == [1.0, 5.0, 2.5, 1.0, 0.75, 2.0, 1.0, 0.0]
    assert statistics(dataclasses.replace(update, score=None))["scored"] == 0.0


# --- adapters that clients keep ---


def test_client_keeps_its_own_adapter_and_tells_nothing_of_it(clients):
    kept = {}
    for name, client in clients.items():
        clients[name] = dataclasses.replace(client, operator=Operator(functools.partial(kept.__setitem__, name)))
    secure = server(clients, on=True)
    record = secure.run_round(1)
    answers = len(secure.transport.answers)
    final, scores = secure.personalize(record)
    assert final == dataclasses.replace(record, scores=final.scores)
    assert scores.keys() == set(IDS)  # a simulation sees what no answer tells
    assert secure.transport.answers[answers:] == [ClientUpdate(name, 2, {}) for name in IDS]
    assert kept.keys() == set(IDS)
    assert largest_difference(kept["a"], secure.adapter) > 1e-3
    assert largest_difference(kept["a"], kept["b"]) > 1e-3


def test_request_to_keep_within_a_session_is_no_way_to_an_update(clients):
    secure = server(clients, on=True)
    member = secure.transport._clients["a"]
    session = Session.fresh("run", 1, IDS, payload="")
    request = TrainRequest(1, secure.adapter, True, session, "run", keep=True)
    with pytest.raises(RefusalError):
        member.answer(request)
