"""A client behind bytes, with a server that is hostile or broken."""

import dataclasses
import io
import re
import stat
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from tests.transports.small_federation import RUN, Small, identical, relabelled, small_config

from fedcollm.config.baselines import changed
from fedcollm.errors import UserError
from fedcollm.federation.answered import LastAnswer
from fedcollm.federation.client import Client
from fedcollm.federation.secagg.fixed_point import RangeError
from fedcollm.messages import (
    Answer,
    ClientUpdate,
    Failure,
    PhaseAnswer,
    PhaseRequest,
    Session,
    TrainRequest,
    payload_digest,
)
from fedcollm.models.adapters import read_adapter
from fedcollm.progress import shown
from fedcollm.transports.endpoint import ClientEndpoint
from fedcollm.transports.wire import decode, encode

ALL = ("0", "1", "2", "3")


@pytest.fixture
def small(model_directories, word_data, tmp_path, monkeypatch) -> Small:
    """Without secure aggregation."""
    return Small(small_config(model_directories, word_data), tmp_path / "disk", monkeypatch)


@pytest.fixture
def secure(model_directories, word_data, tmp_path, monkeypatch) -> Small:
    """With it."""
    config = small_config(model_directories, word_data, **{"federation.secure_aggregation.enabled": True})
    return Small(config, tmp_path / "disk", monkeypatch)


def asked(answering: ClientEndpoint, request: object) -> Answer:
    """The answer to a request, or to bytes."""
    answer = decode(answering(request if isinstance(request, bytes) else encode(request)), 10**8)  # pyright: ignore
    assert isinstance(answer, (ClientUpdate, PhaseAnswer, Failure))
    return answer


def session(small: Small, run: str = RUN, ids=ALL, payload: str | None = None, **changes) -> Session:
    settings = small.answering("0").client.settings  # pyright: ignore[reportAttributeAccessIssue]
    agreed = {"evaluate": True, "agreed": settings.to_wire()}
    payload = payload_digest(small.theta, agreed) if payload is None else payload
    return dataclasses.replace(Session.fresh(run, 1, ids, payload=payload), **changes)


def retouched(small: Small, change) -> TrainRequest:
    return small.request(adapter={name: change(tensor) for name, tensor in small.theta.items()})


# --- without secure aggregation ---

PLAIN = {
    "empty": (lambda small: b"", "not a message of this protocol"),
    "garbage": (lambda small: b"\xff" * 1000, "not a message of this protocol"),
    "pickle": (lambda small: b"\x80\x04\x95" + bytes(50), "not a message of this protocol"),
    "truncated": (lambda small: encode(small.request())[:-1], "not a message of this protocol"),
    "longer than said": (lambda small: encode(small.request()) + b"\x00", "not a message of this protocol"),
    "oversized": (lambda small: bytes(small.answering("0").limit_bytes + 1), "longer than the .* allowed"),
    "older server": (lambda small: relabelled(encode(small.request()), 3), "protocol version 3.* version 4"),
    "newer server": (lambda small: relabelled(encode(small.request()), 5), "protocol version 5.* version 4"),
    "failure": (lambda small: Failure("0", "why"), "an answer was sent to a client"),
    "update": (lambda small: ClientUpdate("0", 1, small.theta, 3, 0.5), "an answer was sent to a client"),
    "phase answer": (lambda small: PhaseAnswer("0", "00", {"keys": b"x"}), "an answer was sent to a client"),
    "other run": (lambda small: small.request(run="other"), "'other', and this client is part of 'small-0123'"),
    "no run": (lambda small: small.request(run=""), "a request of run ''"),
    "shapes": (lambda small: retouched(small, lambda t: t[:1]), "does not fit the model: tensor .* not "),
    "dtype": (lambda small: retouched(small, lambda t: t.half()), "does not fit the model: .*float16"),
    "nan": (lambda small: retouched(small, lambda t: t * torch.nan), "is not finite"),
    "infinity": (lambda small: retouched(small, lambda t: t + torch.inf), "is not finite"),
    "no tensors": (lambda small: small.request(adapter={}), "is missing"),
    "more tensors": (
        lambda small: small.request(adapter={**small.theta, "base.weight": torch.zeros(2, 2)}),
        "tensor base.weight is unknown",
    ),
    "phase": (lambda small: PhaseRequest("share", "00", {}), "not set up for secure aggregation"),
    "session": (lambda small: small.request(session=Session.fresh(RUN, 1, ALL)), "not set up for secure aggregation"),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_bad_request_is_refused_untrained_and_the_next_good_one_is_answered(small, kind, monkeypatch):
    answering = small.answering("0")
    slm = answering.client.slm
    before = read_adapter(slm)
    build, reason = PLAIN[kind]
    with monkeypatch.context() as patched:
        patched.setattr("fedcollm.federation.client.fit", lambda *a, **k: pytest.fail("trained"))
        answer = asked(answering, build(small))
    assert isinstance(answer, Failure)
    assert answer.client == "0"
    assert re.search(reason, answer.reason)
    assert identical(read_adapter(slm), before)
    good = asked(answering, small.request())
    assert isinstance(good, ClientUpdate)
    assert identical(good.adapter, small.client("0").train(small.request()).adapter)


def test_same_bytes_get_the_same_answer_and_are_done_once(small, monkeypatch):
    answering, trained = small.answering("0"), []
    train = Client.train

    def noting(self, request):
        trained.append(request.round_index)
        return train(self, request)

    monkeypatch.setattr(Client, "train", noting)
    first = [answering(encode(small.request(index))) for index in (1, 1, 2, 2)]
    assert first[0] == first[1] != first[2] == first[3]
    assert trained == [1, 2]


def test_new_process_repeats_the_last_update_byte_for_byte_and_trains_no_other(small, monkeypatch):
    first = small.answering("0")(encode(small.request(1)))
    assert stat.S_IMODE((small.disk / "0-update").stat().st_mode) == 0o600
    small.parts["0"] = small.parts["1"]  # its data are others by now
    monkeypatch.setattr(Client, "train", lambda *a: pytest.fail("trained"))
    assert small.answering("0")(encode(small.request(1))) == first
    refusal = asked(small.answering("0"), small.request(1, evaluate=False))
    assert isinstance(refusal, Failure)
    assert "round 1 was answered before" in refusal.reason
    kept = (small.disk / "0-update").read_bytes()
    (small.disk / "0-update").write_bytes(kept[:-1])
    assert "round 1 was answered before" in str(asked(small.answering("0"), small.request(1)))


def test_update_that_cannot_be_kept_does_not_leave(small, monkeypatch):
    answering = small.answering("0")
    monkeypatch.setattr(LastAnswer, "keep", lambda *a: small.disk.mkdir())  # an OSError: it is there
    reason = "the client can't carry out the request; its operator sees why"
    assert asked(answering, small.request()) == Failure("0", reason)


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "secure"])
def test_client_without_test_examples_takes_part_unscored(small, secure, secured):
    one = secure if secured else small
    answering = one.answering("0")
    part = answering.client.client if secured else answering.client
    object.__setattr__(part, "test", [])
    answer = asked(answering, one.request(session=session(one) if secured else None))
    assert isinstance(answer, PhaseAnswer if secured else ClientUpdate)
    assert getattr(answer, "score", None) is None


# --- errors ---


@pytest.mark.parametrize("kind", [RangeError, UserError, KeyError, MemoryError, RecursionError])
def test_error_that_is_no_refusal_travels_without_its_text_and_its_kind(small, monkeypatch, kind):
    def failing(self, request):
        raise kind("the patient John Smith has E11.9")

    answering = small.answering("0")
    with monkeypatch.context() as patched:
        patched.setattr(Client, "train", failing)
        data = answering(encode(small.request()))
    assert b"John" not in data
    assert decode(data, 10**6) == Failure("0", "the client can't carry out the request; its operator sees why")
    assert isinstance(asked(answering, small.request(2)), ClientUpdate)


@pytest.mark.parametrize(("spent", "waited"), [(0.0, 10.0), (9.0, 1.0), (10.5, 9.5), (30.0, 0.0)])
@pytest.mark.parametrize("fails", [False, True])
def test_answer_leaves_after_a_whole_multiple_of_the_seconds_that_the_operator_sets(
    small, monkeypatch, spent, waited, fails
):
    clock, waits = [100.0], []

    def training(*args, **kwargs):
        clock[0] += spent
        return 1 / 0 if fails else 0.5

    answering = small.answering("0")
    answering.answer_after, answering.wait = 10.0, waits.append
    monkeypatch.setattr("fedcollm.federation.client.fit", training)
    monkeypatch.setattr("fedcollm.transports.endpoint.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert isinstance(asked(answering, small.request()), ClientUpdate)
    assert waits == [waited]


def test_answer_waits_when_it_is_complete_whatever_went_wrong_and_a_refusal_does_not(small, monkeypatch):
    done: list[object] = []
    answering = small.answering("0")
    answering.answer_after, answering.wait = 10.0, lambda seconds: done.append("waited")
    monkeypatch.setattr("fedcollm.transports.endpoint.encode", lambda answer: done.append(answer) or encode(answer))
    assert isinstance(asked(answering, small.request(1)), ClientUpdate)
    assert [done[0].__class__, *done[1:]] == [ClientUpdate, "waited"]
    assert isinstance(asked(answering, small.request(9)), Failure)
    assert done[3:] == []  # the refusal alone
    with monkeypatch.context() as patched:
        patched.setattr(Client, "train", lambda *_: 1 / 0)
        assert isinstance(asked(answering, small.request(2)), Failure)
    assert done[4:] == ["waited"]


def test_update_outside_the_range_is_answered_as_any_other(model_directories, word_data, tmp_path, monkeypatch):
    changes = {"federation.secure_aggregation.enabled": True, "federation.secure_aggregation.value_range": 1e-6}
    small = Small(small_config(model_directories, word_data, **changes), tmp_path / "disk", monkeypatch)
    answering, log = small.answering("0"), io.StringIO()
    with shown(Console(file=log, width=500)):
        answer = asked(answering, small.request(session=session(small)))
    assert isinstance(answer, PhaseAnswer)
    assert list(answer.items) == ["keys"]
    assert "outside the fixed-point range of ±1e-06" in log.getvalue()


# --- with secure aggregation ---


SECURE = {
    "plain update": (lambda small: small.request(), "a plain update was asked for"),
    "other run": (lambda small: small.request(session=session(small, run="other")), "a session of run 'other'"),
    "other run, told right": (
        lambda small: small.request(run="other", session=session(small)),
        "a request of run 'other'",
    ),
    "fewer": (lambda small: small.request(session=session(small, ids=ALL[:3])), "3 clients are invited, fewer than 4"),
    "two": (lambda small: small.request(session=session(small, ids=ALL[:2])), "at least 3 are needed"),
    "alone": (lambda small: small.request(session=session(small, ids=ALL[:1])), "at least 3 are needed"),
    "without it": (
        lambda small: small.request(session=session(small, ids=("1", "2", "3", "4"))),
        "client 0 was not invited",
    ),
    "strangers": (
        lambda small: small.request(session=session(small, ids=(*ALL, "9"))),
        "client 9 is invited, but not in the roster",
    ),
    "low threshold": (lambda small: small.request(session=session(small, threshold=2)), "it must be from 3 to 4"),
    "high threshold": (lambda small: small.request(session=session(small, threshold=5)), "it must be from 3 to 4"),
    "twice": (
        lambda small: small.request(session=session(small, invited=("0", "0", "1", "2"))),
        "names a client twice",
    ),
    "other round": (lambda small: small.request(2, session=session(small)), "a plain update was asked for"),
    "other adapter": (
        lambda small: small.request(session=session(small, payload="00" * 32)),
        "not what the session says that all clients were sent",
    ),
    "not evaluated": (
        lambda small: small.request(evaluate=False, session=session(small)),
        "not what the session says that all clients were sent",
    ),
    "phase first": (lambda small: PhaseRequest("share", "00" * 16, {}), "not the session that the client is in"),
    "no nonce": (lambda small: PhaseRequest("unmask", "", {}), "not the session that the client is in"),
    "garbage": (lambda small: b"garbage", "not a message of this protocol"),
    "older server": (
        lambda small: relabelled(encode(small.request(session=session(small))), 3),
        "version 3.* version 4",
    ),
    "newer server": (
        lambda small: relabelled(encode(small.request(session=session(small))), 5),
        "version 5.* version 4",
    ),
}


@pytest.mark.parametrize("kind", SECURE)
def test_bad_invitation_is_refused_untrained_and_the_next_good_one_is_answered(secure, kind, monkeypatch):
    answering = secure.answering("0")
    build, reason = SECURE[kind]
    with monkeypatch.context() as patched:
        patched.setattr("fedcollm.federation.client.fit", lambda *a, **k: pytest.fail("trained"))
        answer = asked(answering, build(secure))
    assert isinstance(answer, Failure)
    assert re.search(reason, answer.reason)
    good = asked(answering, secure.request(session=session(secure)))
    assert isinstance(good, PhaseAnswer)
    assert list(good.items) == ["keys"]


@pytest.mark.parametrize("phase", ["mask", "confirm", "unmask", "advertise", "_enter", "__class__", ""])
def test_phase_out_of_order_is_refused_and_the_session_is_over(secure, phase):
    answering = secure.answering("0")
    one = session(secure)
    assert isinstance(asked(answering, secure.request(session=one)), PhaseAnswer)
    answer = asked(answering, PhaseRequest(phase, one.nonce, dict.fromkeys(ALL, b"")))
    assert isinstance(answer, Failure)
    assert "there is no phase" in answer.reason or "was requested, but share comes next" in answer.reason
    assert isinstance(asked(answering, secure.request(session=session(secure))), PhaseAnswer)


@pytest.mark.parametrize(
    "items",
    [{}, {"0": b""}, dict.fromkeys(ALL, b""), dict.fromkeys(ALL, bytes(160)), dict.fromkeys("5678", bytes(160))],
    ids=["none", "one", "empty", "zeros", "strangers"],
)
def test_keys_that_are_none_are_refused_and_no_share_is_sent(secure, items):
    answering = secure.answering("0")
    one = session(secure)
    keys = asked(answering, secure.request(session=one))
    assert isinstance(keys, PhaseAnswer)
    own = {"0": keys.items["keys"]} if len(items) == 4 and "0" in items else {}
    answer = asked(answering, PhaseRequest("share", one.nonce, {**items, **own}))
    assert isinstance(answer, Failure)
    assert isinstance(asked(answering, secure.request(session=session(secure))), PhaseAnswer)


def test_new_invitation_ends_the_session_before(secure):
    answering = secure.answering("0")
    first, second = session(secure), session(secure)
    asked(answering, secure.request(session=first))
    asked(answering, secure.request(session=second))
    answer = asked(answering, PhaseRequest("share", first.nonce, {}))
    assert answer == Failure("0", "this is not the session that the client is in")


def test_same_invitation_again_gets_the_same_keys(secure):
    answering = secure.answering("0")
    data = encode(secure.request(session=session(secure)))
    first = answering(data)
    assert answering(data) == first


@pytest.mark.parametrize("restarted", [False, True], ids=["same process", "new process"])
@pytest.mark.parametrize("privacy", [None, {"level": "client", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}])
def test_another_session_of_a_round_gets_the_same_vector_untrained(secure, monkeypatch, restarted, privacy):
    """So it has the same noise, and a training that failed has not succeeded meanwhile."""
    secure.config = changed(secure.config, {"federation.privacy": privacy, "federation.aggregation": "uniform"})
    answering, file = secure.answering("0"), secure.disk / "0-vector"
    assert isinstance(asked(answering, secure.request(session=session(secure))), PhaseAnswer)
    sent = file.read_bytes()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with monkeypatch.context() as patched:
        patched.setattr(Client, "train", lambda *a: pytest.fail("trained"))
        answering = secure.answering("0") if restarted else answering
        again = asked(answering, secure.request(session=session(secure)))
        assert isinstance(again, PhaseAnswer)
        assert answering.client._participant._vector.tobytes() == sent[64:]
    file.unlink()
    refusal = asked(secure.answering("0"), secure.request(session=session(secure)))
    assert refusal == Failure("0", "what this client sent in round 1 is not there any more")


def test_client_that_was_asked_alone_for_something_else_sends_no_second_vector_of_a_round(secure, monkeypatch):
    """Else the sum of the round, opened by others before and once more, would differ by this client's part alone."""
    answering = secure.answering("0")
    assert isinstance(asked(answering, secure.request(session=session(secure))), PhaseAnswer)
    monkeypatch.setattr(Client, "train", lambda *a: pytest.fail("trained"))
    agreed = {"evaluate": False, "agreed": answering.client.settings.to_wire()}
    other = session(secure, payload=payload_digest(secure.theta, agreed))
    refusal = asked(answering, secure.request(evaluate=False, session=other))
    assert refusal == Failure("0", "round 1 was joined before, for another request")
    monkeypatch.undo()
    later = dataclasses.replace(session(secure), round_index=2)
    assert isinstance(asked(answering, secure.request(2, session=later)), PhaseAnswer)
    for client in (answering, secure.answering("0")):  # in a new process too
        refusal = asked(client, secure.request(session=session(secure)))
        assert refusal == Failure("0", "round 1 was asked for after round 2, and no round comes twice")
