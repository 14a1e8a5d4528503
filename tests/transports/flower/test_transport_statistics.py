"""Statistics of the clients over a network in memory: asked for once, before round 1, and by nobody else."""

from pathlib import Path

import pytest
import torch
from tests.transports.memory_link import Fault, ServerKilledError
from tests.transports.small_federation import RUN, Small, garbage, identical, small_config

from fedcollm.data.audit.profiles import read_profile
from fedcollm.errors import RoundFailedError
from fedcollm.federation import statistics
from fedcollm.federation.secagg.aggregator import SecureAggregator
from fedcollm.federation.statistics import asked_for
from fedcollm.messages import Adapter, ClientUpdate, Failure, TrainRequest, adapter_bytes
from fedcollm.runs import directory as run_directory
from fedcollm.runs.build import Inputs, Remote
from fedcollm.runs.build_clients import secured
from fedcollm.runs.runner import rounds, run
from fedcollm.transports.wire import decode

ALL = ("0", "1", "2", "3")
SECURE = {"federation.secure_aggregation.enabled": True}
LABELS = {
    "server.pseudo_labels": {"columns": 64, "always": True},
    "server.epochs": 1,
    "task.unlabelled_size": 24,
    "task.public_size": 16,
}
ZEROS = {"statistics/gram": torch.zeros(64 * 65 // 2), "statistics/targets": torch.zeros(64, 2)}

either_way = pytest.mark.parametrize("secure", [{}, SECURE], ids=["plain", "secure"])


@pytest.fixture
def make(model_directories, word_data, tmp_path, monkeypatch):
    """Makes a small federation."""

    def small(**changes) -> Small:
        return Small(small_config(model_directories, word_data, **changes), tmp_path / "disk", monkeypatch)

    return small


def state(out: Path) -> tuple[dict[str, Adapter], list[dict[str, object]]]:
    """What a run has reached: its checkpoint, and its records without times and bytes."""
    loaded = run_directory.load_round(out)
    assert loaded is not None
    told = [{"scores": r.scores, "losses": r.losses, "who": r.participants} for r in run_directory.read_records(out)]
    return loaded[1], told


def same(one: Path, other: Path) -> bool:
    (adapters, records), (others, expected) = state(one), state(other)
    equal = adapters.keys() == others.keys() and all(identical(adapters[name], others[name]) for name in adapters)
    return equal and records == expected


def times_asked(small: Small) -> dict[str, int]:
    """How often each client was asked for its statistics."""
    sent = [(name, decode(data, len(data))) for name, _, data in small.link.requests]
    asked = [name for name, message in sent if isinstance(message, TrainRequest) and asked_for(message)]
    return {name: asked.count(name) for name in ALL}


@either_way
def test_pseudo_labels_and_profile_equal_those_in_this_process_bit_for_bit(make, tmp_path, secure):
    small = make(**LABELS, **secure, **{"federation.profile": True})
    first, *_ = small.run(tmp_path / "network")
    run(small.config, tmp_path / "local")
    assert same(tmp_path / "network", tmp_path / "local")
    assert state(tmp_path / "network")[0].keys() == {"slm", "llm", "teacher"}
    assert first.participants == ALL
    assert first.bytes_up >= adapter_bytes(ZEROS)
    assert times_asked(small) == dict.fromkeys(ALL, 1)
    profile = read_profile(tmp_path / "network" / run_directory.PROFILE)
    assert profile == read_profile(tmp_path / "local" / run_directory.PROFILE)
    assert profile.examples == sum(profile.labels.values()) == sum(profile.lengths) == sum(profile.sketch)


def test_features_of_the_slm_are_the_same_at_the_clients_and_on_the_server(make, tmp_path):
    small = make(**LABELS | {"server.pseudo_labels": {"features": "ngrams_slm", "columns": 64, "always": True}})
    first, *_ = small.run(tmp_path / "network")
    assert first.bytes_up == 4 * (80 * 81 // 2 + 80 * 2)  # 64 columns and 16 hidden units
    run(small.config, tmp_path / "local")
    assert same(tmp_path / "network", tmp_path / "local")


@either_way
def test_server_that_restarts_after_round_0_asks_nobody_again(make, tmp_path, monkeypatch, secure):
    small, out = make(**LABELS, **secure), tmp_path / "run"
    remote = Remote(small.link.transport(monkeypatch), RUN, small.roster)
    begun = rounds(small.config, out, Inputs(remote=remote))
    assert next(begun).round == 0
    begun.close()
    small.restart_clients()
    assert [record.round for record in small.run(out, resume=True)] == [0, 1, 2]
    assert times_asked(small) == dict.fromkeys(ALL, 1)
    run(small.config, tmp_path / "local")
    assert same(out, tmp_path / "local")


@pytest.mark.parametrize(
    ("secure", "kind", "after"), [({}, "training", True), (SECURE, "mask", False), (SECURE, "unmask", True)], ids=str
)
def test_server_that_is_killed_before_it_saves_round_0_asks_again(make, tmp_path, secure, kind, after):
    small, out = make(**LABELS, **secure), tmp_path / "run"
    small.link.kill_server(kind, after)
    with pytest.raises(ServerKilledError):
        small.run(out)
    assert run_directory.load_round(out) is None
    small.restart_clients()
    small.run(out, resume=True)
    assert times_asked(small) == dict.fromkeys(ALL, 2)
    run(small.config, tmp_path / "local")
    assert same(out, tmp_path / "local")


def test_client_that_is_lost_in_round_0_is_named_and_takes_part_later(make, tmp_path):
    small = make(**LABELS)
    small.link.fault("2", "training", Fault.LATE)
    zero, one, _ = small.run(tmp_path / "run")
    assert (zero.participants, dict(zero.lost)) == (("0", "1", "3"), {"2": "no answer within 900000 s"})
    assert one.participants == ALL


@pytest.mark.parametrize("kind", ["false statistics", "garbage for two"])
def test_client_that_spoils_round_0_costs_the_pseudo_labels_and_not_the_run(make, tmp_path, monkeypatch, kind):
    small = make(**LABELS, **SECURE)
    if kind == "false statistics":
        monkeypatch.setattr(statistics, "moments", lambda *arguments: {name: t + 1 for name, t in ZEROS.items()})
    else:
        small.link.fault("1", "share", garbage("0", "2"))
    zero, one, two = small.run(tmp_path / "run")
    assert "pseudo-labels: the statistics that they need were spoiled" in zero.notes[-1]
    left = ("0", "2", "3") if kind == "garbage for two" else ALL
    assert one.participants == two.participants == left
    more = set[str]() if left == ALL else {"left_out"}
    assert state(tmp_path / "run")[0].keys() == {"slm", "llm"} | more


# --- a hostile server ---

HOSTILE = [
    ({}, {}, "neither control nor pseudo_labels"),
    (LABELS, {"round_index": 1}, "only round 0"),
    (LABELS, {"adapter": ZEROS | {"statistics/gram": torch.ones(64 * 65 // 2)}}, "other values than zeros"),
    (LABELS, {"adapter": {"statistics/gram": torch.zeros(3)}}, "and nothing else"),
    (LABELS, {"run": "other"}, "a request of run 'other'"),
]


@pytest.mark.parametrize(("config", "changes", "reason"), HOSTILE, ids=lambda value: str(value)[:30])
def test_client_refuses_to_send_statistics_that_were_not_agreed(make, monkeypatch, config, changes, reason):
    small = make(**config)
    request = TrainRequest(**{"round_index": 0, "adapter": ZEROS, "evaluate": False, "run": RUN, **changes})
    answers = list(small.link.transport(monkeypatch).ask(dict.fromkeys(ALL, request)))
    assert {type(answer) for answer in answers} == {Failure}
    assert all(_says(answer, reason) for answer in answers)


def _says(answer: object, reason: str) -> bool:
    return isinstance(answer, Failure) and any(part in answer.reason for part in reason.split("|"))


@pytest.mark.parametrize(
    ("config", "round_index", "reason"), [({}, 0, "neither control nor pseudo_labels"), (LABELS, 1, "only round 0")]
)
def test_client_refuses_them_in_a_session_too(make, monkeypatch, config, round_index, reason):
    small = make(**config, **SECURE)
    settings = secured(small.config, small.roster)
    assert settings is not None
    request = TrainRequest(round_index, ZEROS, evaluate=False, run=RUN)
    with pytest.raises(RoundFailedError, match=reason):
        SecureAggregator(settings).aggregate(small.link.transport(monkeypatch).ask, request, ALL)


def test_client_under_secure_aggregation_sends_no_plain_statistics(make, monkeypatch):
    small = make(**LABELS, **SECURE)
    request = TrainRequest(0, ZEROS, evaluate=False, run=RUN)
    answers = list(small.link.transport(monkeypatch).ask(dict.fromkeys(ALL, request)))
    assert all(_says(answer, "a plain update was asked for") for answer in answers)


def test_statistics_are_opened_for_one_set_of_survivors_only(make, monkeypatch):
    small = make(**LABELS, **SECURE)
    settings = secured(small.config, small.roster)
    assert settings is not None
    request, ask = TrainRequest(0, ZEROS, evaluate=False, run=RUN), small.link.transport(monkeypatch).ask
    first = SecureAggregator(settings).aggregate(ask, request, ALL)
    again = SecureAggregator(settings).aggregate(ask, request, ALL)
    assert identical(first.adapter, again.adapter)
    small.restart_clients()
    small.link.fault("3", "training", Fault.DIES)
    with pytest.raises(RoundFailedError, match="opened"):
        SecureAggregator(settings).aggregate(ask, request, ALL)


def test_client_that_restarts_with_other_examples_sends_no_other_statistics(make, monkeypatch):
    small = make(**LABELS)
    request, ask = TrainRequest(0, ZEROS, evaluate=False, run=RUN), small.link.transport(monkeypatch).ask
    (first,) = ask({"3": request})
    assert isinstance(first, ClientUpdate)
    small.parts["3"] = [*small.parts["3"], small.parts["2"][0]]
    small.restart_clients()
    (again,) = ask({"3": request})
    assert isinstance(again, ClientUpdate)
    assert identical(again.adapter, first.adapter)
    (small.disk / "3-update").unlink()
    small.restart_clients()
    assert all(_says(answer, "round 0 was answered before") for answer in ask({"3": request}))
