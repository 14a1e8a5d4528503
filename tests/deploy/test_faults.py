"""Clients and the server killed, restarted or late in every phase of secure aggregation: nothing is lost or falsified.

Three of four clients open a sum. In `confirm` and `unmask`, a client's vector is in the sum already, so that a client
that is lost there is a participant all the same.
"""

import json
from typing import Any, cast

import pytest
import safetensors.numpy
from safetensors import safe_open
from tests.parties import mean_of
from tests.transports.memory_link import Fault, ServerKilledError
from tests.transports.small_federation import Small, difference, garbage, identical, last, small_config

from fedcollm.errors import RoundFailedError, UserError
from fedcollm.messages import Adapter, PhaseAnswer, RoundRecord
from fedcollm.runs import directory as run_directory
from fedcollm.runs import runner
from fedcollm.runs.build import OPENING, Inputs
from fedcollm.transports.wire import decode, encode

ALL = ("0", "1", "2", "3")
PHASES = ("training", "share", "mask", "confirm", "unmask")
EARLY = PHASES[:3]  # who is lost there is not in the sum
ROUNDING = 1e-5


@pytest.fixture
def make(model_directories, word_data, tmp_path, monkeypatch):
    """Makes a small federation under secure aggregation."""

    def small(**changes) -> Small:
        config = small_config(
            model_directories, word_data, **{"federation.secure_aggregation.enabled": True, **changes}
        )
        return Small(config, tmp_path / "disk", monkeypatch)

    return small


@pytest.fixture(scope="module")
def baseline(model_directories, word_data, tmp_path_factory):
    """Records and the SLM's final adapter of a run in one process, without faults."""
    out = tmp_path_factory.mktemp("baseline") / "run"
    runner.run(small_config(model_directories, word_data, **{"federation.secure_aggregation.enabled": True}), out)
    return run_directory.read_records(out), last(out)[1]


def assert_like(records: list[RoundRecord], adapter: Adapter, baseline) -> None:
    """The run ended as if nothing had gone wrong: sums of integers are exact, so to the last bit."""
    expected, final = baseline
    assert [record.round for record in records] == [0, 1, 2]
    for record, wanted in zip(records, expected, strict=True):
        assert record.participants == wanted.participants
        assert (record.scores, record.losses) == (wanted.scores, wanted.losses)
    assert identical(adapter, final)


def plain_mean(small: Small, participants: tuple[str, ...]) -> Adapter:
    """The mean of these clients' updates in the first round, by their numbers of examples."""
    return mean_of(small.client(name).train(small.request()) for name in participants).adapter


def phase_of(kind: str) -> str:
    return "advertise" if kind == "training" else kind


def saved(out) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in (run_directory.CHECKPOINT, run_directory.ROUNDS)}


def opened(small: Small) -> dict[str, dict[str, list[str]]]:
    """Client to the rounds that its disk says it has opened."""
    files = {client: f"{client}-opened.json" for client in ALL}
    disks = {client: run_directory.read_json(small.disk, file) or {} for client, file in files.items()}
    return {client: {n: who for n, who in disk.items() if "θ" not in n} for client, disk in disks.items()}


# --- no fault ---


def test_run_over_the_network_equals_the_one_in_this_process(make, baseline, tmp_path):
    small = make()
    assert_like(small.run(tmp_path / "run"), last(tmp_path / "run")[1], baseline)
    rounds = {f"small-0123/{index}": list(ALL) for index in (1, 2)}
    assert opened(small) == dict.fromkeys(ALL, rounds)


def test_first_round_equals_the_one_without_secure_aggregation(make, baseline, model_directories, word_data, tmp_path):
    runner.run(small_config(model_directories, word_data, **{"federation.rounds": 1}), tmp_path / "plain")
    small = make(**{"federation.rounds": 1})
    *_, secure = small.run(tmp_path / "secure")
    plain, adapter = last(tmp_path / "plain")
    assert secure.scores == pytest.approx(plain.scores, abs=1e-5)
    assert secure.losses == pytest.approx(plain.losses, abs=1e-5)
    assert difference(last(tmp_path / "secure")[1], adapter) < ROUNDING
    assert difference(adapter, small.theta) > 1e-3


# --- one client ---


@pytest.mark.parametrize(("kind", "fault"), [*((kind, Fault.DIES) for kind in PHASES), ("share", Fault.DIES_AFTER)])
def test_client_that_is_killed_costs_its_update_only(make, tmp_path, kind, fault):
    small = make(**{"federation.rounds": 1})
    small.link.fault("1", kind, fault)
    *_, record = small.run(tmp_path / "run")
    early = kind in EARLY
    assert record.participants == (("0", "2", "3") if early else ALL)
    assert dict(record.lost) == {"1": f"{phase_of(kind)}: not connected for 300000 s"}
    assert difference(last(tmp_path / "run")[1], plain_mean(small, record.participants)) < ROUNDING
    assert not small.link.processes["1"].alive


@pytest.mark.parametrize("kind", PHASES)
def test_client_that_is_late_is_lost_for_its_round_only(make, baseline, tmp_path, kind):
    small = make()
    small.link.fault("3", kind, Fault.LATE)
    records = small.run(tmp_path / "run")
    _, first, second = records
    seconds = 900_000 if kind == "training" else 800_000
    early = kind in EARLY
    assert first.participants == (("0", "1", "2") if early else ALL)
    assert dict(first.lost) == {"3": f"{phase_of(kind)}: no answer within {seconds} s"}
    assert (second.participants, dict(second.lost)) == (ALL, {})
    if not early:
        assert_like(records, last(tmp_path / "run")[1], baseline)


@pytest.mark.parametrize(
    ("kind", "fault"), [*((kind, Fault.RESTARTS) for kind in PHASES[1:]), ("mask", Fault.RESTARTS_AFTER)]
)
def test_client_that_restarts_within_a_session_refuses_it_and_joins_the_next(make, tmp_path, kind, fault):
    small = make()
    small.link.fault("2", kind, fault)
    _, first, second = small.run(tmp_path / "run")
    early = kind in EARLY
    assert first.participants == (("0", "1", "3") if early else ALL)
    reason = "this is not the session that the client is in"
    assert dict(first.lost) == {"2": f"{kind}: {reason}"}
    assert reason in [getattr(answer, "reason", "") for answer in small.answers("2")]
    assert (second.participants, dict(second.lost)) == (ALL, {})


@pytest.mark.parametrize("fault", [Fault.RESTARTS, Fault.RESTARTS_AFTER], ids=lambda fault: fault.name)
def test_client_that_restarts_while_it_trains_trains_anew(make, baseline, tmp_path, fault):
    small = make()
    small.link.fault("2", "training", fault)
    assert_like(small.run(tmp_path / "run"), last(tmp_path / "run")[1], baseline)
    assert small.link.processes["2"].log.count("training") == 3


@pytest.mark.parametrize("kind", PHASES)
def test_client_that_loses_its_connection_answers_again(make, baseline, tmp_path, kind):
    small = make()
    small.link.fault("2", kind, Fault.RECONNECTS)
    assert_like(small.run(tmp_path / "run"), last(tmp_path / "run")[1], baseline)
    assert small.link.processes["2"].log.count(kind) == 3


@pytest.mark.parametrize("kind", PHASES)
def test_superlink_that_breaks_off_in_a_phase_changes_nothing(make, baseline, tmp_path, kind):
    small = make()
    small.link.fault("0", kind, lambda reply: small.link.break_off(20) or reply)
    assert_like(small.run(tmp_path / "run"), last(tmp_path / "run")[1], baseline)


def test_clients_lost_one_by_one_are_each_named_with_their_phase(make, tmp_path):
    """The second one is one too many only if it is lost before its vector is in the sum."""
    small = make(**{"federation.rounds": 1})
    small.link.fault("1", "share", Fault.DIES)
    small.link.fault("1", "mask", Fault.DIES)
    small.link.fault("3", "mask", Fault.LATE)
    with pytest.raises(RoundFailedError, match="2 of 4 clients are left after phase mask") as failed:
        small.run(tmp_path / "run")
    lost = "(client 1: share: not connected for 300000 s; client 3: mask: no answer within 800000 s)"
    assert lost in str(failed.value)


def test_clients_that_are_lost_in_the_last_round_leave_the_first(make, baseline, tmp_path):
    small = make()
    small.link.fault("0", "mask", lambda reply: reply, Fault.DIES)
    _, first, second = small.run(tmp_path / "run")
    assert (first.participants, second.participants) == (ALL, ("1", "2", "3"))
    assert first.scores == baseline[0][1].scores


# --- too many clients ---


@pytest.mark.parametrize(("kind", "fault"), [*((kind, Fault.DIES) for kind in PHASES), ("mask", Fault.LATE)])
def test_too_few_clients_fail_the_round_and_a_resume_with_all_ends_as_without_the_fault(
    make, baseline, tmp_path, kind, fault
):
    small, out = make(), tmp_path / "run"
    for client in ("1", "2"):
        small.link.fault(client, kind, fault)
    with pytest.raises(RoundFailedError) as failed:
        small.run(out)
    message, phase = str(failed.value), phase_of(kind)
    seconds = 900_000 if kind == "training" else 800_000
    reason = "not connected for 300000 s" if fault is Fault.DIES else f"no answer within {seconds} s"
    assert f"round 1: 2 of 4 clients are left after phase {phase} of secure aggregation, and 3 are needed" in message
    assert "bring the clients back, and resume" in message
    for client in ("1", "2"):
        assert f"client {client}: {phase}: {reason}" in message
    record, adapter = last(out)
    assert record.round == 0
    assert identical(adapter, small.theta)
    if fault is Fault.DIES:
        for client in ("1", "2"):
            small.link.start(client)
    assert_like(small.run(out, resume=True), last(out)[1], baseline)


def test_resume_with_too_few_again_fails_again_and_keeps_the_state(make, baseline, tmp_path):
    small, out = make(), tmp_path / "run"
    for client in ("1", "2"):
        small.link.fault(client, "mask", lambda reply: reply, Fault.DIES)
    with pytest.raises(RoundFailedError, match="round 2"):
        small.run(out)
    before = saved(out)
    with pytest.raises(RoundFailedError, match="round 2: 2 of 4 clients are left after phase advertise"):
        small.run(out, resume=True)
    assert saved(out) == before
    for client in ("1", "2"):
        small.link.start(client)
    assert_like(small.run(out, resume=True), last(out)[1], baseline)


# --- the server ---


@pytest.mark.parametrize(
    ("kind", "after", "restarted"),
    [*((kind, False, False) for kind in PHASES), ("mask", True, True), ("unmask", True, False)],
)
def test_server_that_is_killed_in_a_phase_resumes_as_if_nothing_had_been(
    make, baseline, tmp_path, kind, after, restarted
):
    small, out = make(), tmp_path / "run"
    small.link.kill_server(kind, after)
    with pytest.raises(ServerKilledError):
        small.run(out)
    assert last(out)[0].round == 0
    if restarted:
        small.restart_clients()
    assert_like(small.run(out, resume=True), last(out)[1], baseline)


@pytest.fixture
def killed_before_saving(make, tmp_path, monkeypatch):
    """A federation whose first round was opened, by all but those that are told to be away, and never saved."""

    def killed(*away: str) -> Small:
        small, save = make(), run_directory.save_round
        for client in away:
            small.link.fault(client, "training", Fault.DIES)

        def dying(directory, record, adapters):
            if record.round == 1:
                raise ServerKilledError
            save(directory, record, adapters)

        with monkeypatch.context() as patched:
            patched.setattr(run_directory, "save_round", dying)
            with pytest.raises(ServerKilledError):
                small.run(tmp_path / "run")
        assert last(tmp_path / "run")[0].round == 0
        return small

    return killed


def lose_sum(out) -> None:
    """The server's disk forgets the sum that was opened, as if it had died before the sum was there."""
    (out / OPENING).unlink()


def test_sum_that_was_opened_and_not_saved_is_on_the_servers_disk_and_nobody_is_asked_again(
    killed_before_saving, baseline, tmp_path
):
    small, out = killed_before_saving(), tmp_path / "run"
    trained = [process.log.count("training") for process in small.link.processes.values()]
    small.link.leave("3")
    generator = runner.rounds(None, out, Inputs(remote=small.remote()), resume=True)
    assert [next(generator).participants, next(generator).participants] == [(), ALL]
    assert trained == [1] * 4 == [process.log.count("training") for process in small.link.processes.values()]
    generator.close()
    small.link.start("3")
    assert_like(small.run(out, resume=True), last(out)[1], baseline)


def test_damaged_sum_is_one_message(killed_before_saving, tmp_path):
    small, out = killed_before_saving(), tmp_path / "run"
    (out / OPENING).write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"opening\.safetensors can't be read"):
        small.run(out, resume=True)


@pytest.mark.parametrize("restarted", [False, True], ids=["clients go on", "clients restart"])
def test_round_that_was_opened_and_not_saved_is_opened_again_for_the_same_clients(
    killed_before_saving, baseline, tmp_path, restarted
):
    small = killed_before_saving()
    lose_sum(tmp_path / "run")
    assert opened(small) == {client: {"small-0123/1": list(ALL)} for client in ALL}
    if restarted:
        small.restart_clients()
    assert_like(small.run(tmp_path / "run", resume=True), last(tmp_path / "run")[1], baseline)


@pytest.mark.parametrize(("kind", "restarted"), [*((kind, False) for kind in EARLY), (EARLY[0], True)], ids=str)
def test_round_that_was_opened_is_not_opened_for_others(killed_before_saving, baseline, tmp_path, kind, restarted):
    small, out = killed_before_saving(), tmp_path / "run"
    lose_sum(out)
    before, disks = saved(out), opened(small)
    if restarted:
        small.restart_clients()
    small.link.fault("3", kind, Fault.DIES)
    with pytest.raises(RoundFailedError) as failed:
        small.run(out, resume=True)
    message = str(failed.value)
    assert "round 1: 0 of 4 clients are left after phase confirm" in message
    for client in ("0", "1", "2"):
        assert f"client {client}: confirm: round 1 was opened before, for other survivors" in message
    assert saved(out) == before
    assert opened(small) == disks
    small.link.start("3")
    assert_like(small.run(out, resume=True), last(out)[1], baseline)


def test_round_that_was_opened_without_a_client_is_not_opened_with_it(killed_before_saving, tmp_path):
    """It goes on once that client stays away again."""
    small, out = killed_before_saving("3"), tmp_path / "run"
    lose_sum(out)
    small.link.start("3")
    with pytest.raises(RoundFailedError, match="1 of 4 clients are left after phase confirm") as failed:
        small.run(out, resume=True)
    assert str(failed.value).count("was opened before, for other survivors") == 3
    small.link.leave("3")
    _, first, second = small.run(out, resume=True)
    assert first.participants == second.participants == ("0", "1", "2")
    assert difference(plain_mean(small, first.participants), small.theta) > 1e-3


def test_server_that_died_while_it_opened_a_sum_leaves_out_who_has_come_back_since(make, tmp_path):
    small, out = make(), tmp_path / "run"
    small.link.fault("3", "training", Fault.DIES)
    small.link.kill_server("unmask", True)
    with pytest.raises(ServerKilledError):
        small.run(out)
    small.link.start("3")
    _, first, second = small.run(out, resume=True)
    assert (first.participants, dict(first.lost)) == (("0", "1", "2"), {"3": "mask"})
    assert (second.participants, dict(second.lost)) == (ALL, {})


def test_round_whose_survivors_never_come_back_is_left_out_and_the_run_ends(make, tmp_path):
    small, out = make(), tmp_path / "run"
    small.link.kill_server("unmask", True)
    with pytest.raises(ServerKilledError):
        small.run(out)
    small.link.leave("3")
    for _ in range(2):
        with pytest.raises(RoundFailedError, match="round 1 was opened before by 0, 1, 2, 3, and of these 3 did not"):
            small.run(out, resume=True)
    _, first, second = small.run(out, resume=True)
    assert (first.participants, second.participants) == ((), ("0", "1", "2"))
    assert "The run goes on without this round" in first.notes[0]


def test_round_that_was_opened_by_another_roster_is_left_out_and_the_run_goes_on(killed_before_saving, tmp_path):
    """The operator has removed a client, or admitted one, before the server came back."""
    small, out = killed_before_saving(), tmp_path / "run"
    file = out / OPENING
    with cast(Any, safe_open)(file, framework="np") as stored:
        head = json.loads(stored.metadata()["opening"]) | {"payload": "another"}
        words = {"sum": stored.get_tensor("sum")}
    cast(Any, safetensors.numpy).save_file(words, file, metadata={"opening": json.dumps(head)})
    records = small.run(out, resume=True)
    left = next(record for record in records if record.round == head["round"])
    assert left.participants == ()
    assert "agreed on something else since, such as another roster" in left.notes[0]
    assert all(record.participants == ALL for record in records if record.round not in (0, head["round"]))


# --- a saboteur ---


def wrong_share(reply: bytes) -> bytes:
    """An answer in phase unmask with one bit of one share changed."""
    answer = decode(reply, 10**9)
    assert isinstance(answer, PhaseAnswer)
    share = answer.items["0"]
    return encode(PhaseAnswer(answer.client, answer.nonce, {**answer.items, "0": bytes([share[0] ^ 1]) + share[1:]}))


def test_saboteur_is_named_and_costs_nothing_where_enough_shares_are_right(make, baseline, tmp_path):
    small = make()
    small.link.fault("1", "unmask", wrong_share, wrong_share)
    records = small.run(tmp_path / "run")
    assert_like(records, last(tmp_path / "run")[1], baseline)
    lost = {"1": "unmask: sent a wrong share of the secret of client 0"}
    assert [dict(record.lost) for record in records] == [{}, lost, lost]


def test_saboteur_that_spoils_a_round_is_named_and_left_out_and_the_run_goes_on(make, tmp_path):
    small, out = make(**{"federation.rounds": 3}), tmp_path / "run"
    small.link.fault("1", "unmask", wrong_share)
    small.link.fault("2", "unmask", Fault.RESTARTS)
    small.link.fault(
        "3", "training", lambda reply: reply, lambda reply: reply, Fault.DIES
    )  # the server stops in round 3
    with pytest.raises(RoundFailedError, match="round 3: 2 of 4 clients are left after phase advertise"):
        small.run(out)
    small.link.start("3")
    _, first, second, third = small.run(out, resume=True)
    assert first.participants == ()
    assert dict(first.lost) == {"1": "unmask: sent a wrong share of the secret of client 0", "2": "unmask"}
    assert "The run goes on without this round (client 1: unmask: sent a wrong share" in first.notes[0]
    reason = "advertise: left out since it spoiled round 1"
    for record in (second, third):
        assert (record.participants, dict(record.lost)) == (("0", "2", "3"), {"1": reason})
    assert small.link.processes["1"].log.count("training") == 1


def accusing(reply: bytes) -> bytes:
    """An answer in phase mask of a client that says that it can't open the shares of client 0."""
    answer = decode(reply, 10**9)
    assert isinstance(answer, PhaseAnswer)
    return encode(PhaseAnswer("1", answer.nonce, {"accused": b"0"}))


@pytest.mark.parametrize(
    ("kind", "fault", "first"),
    [
        ("share", garbage("0", "2"), ()),
        ("share", garbage("0"), ("1", "2", "3")),
        ("mask", accusing, ("0", "2", "3")),
    ],
    ids=["garbage for two", "garbage for one", "false accusation"],
)
def test_saboteur_in_phase_share_is_left_out_and_nobody_else_is(make, tmp_path, kind, fault, first):
    small, out = make(), tmp_path / "run"
    small.link.fault("1", kind, fault)
    _, one, two = small.run(out)
    assert one.participants == first
    assert any("client 1" in note for note in one.notes)
    assert (two.participants, dict(two.lost)) == (
        ("0", "2", "3"),
        {"1": "advertise: left out since it spoiled round 1"},
    )
