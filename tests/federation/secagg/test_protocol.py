"""The protocol of secure aggregation: right sums under losses, and every attack on an honest client is refused."""

import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import pytest
import torch
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedcollm.errors import RefusalError, RoundFailedError, SpoiledRoundError
from fedcollm.federation.answered import OpenedRounds
from fedcollm.federation.secagg.boxes import AccusationError
from fedcollm.federation.secagg.masks import commitment, pairwise_mask, private_key, self_mask
from fedcollm.federation.secagg.protocol import Items, Participant
from fedcollm.federation.secagg.server import SecureSum, collect_sum
from fedcollm.messages import Session, default_threshold, payload_digest

KEYS = {name: Ed25519PrivateKey.generate() for name in "abcdefgz"}
ROSTER = {name: key.public_key() for name, key in KEYS.items() if name != "z"}
PHASES = ("share", "mask", "confirm", "unmask")
VECTORS = {  # three words each; their sums wrap around 2³²
    "a": [1, 2**32 - 1, 7],
    "b": [10, 2**32 - 2, 0],
    "c": [100, 2**31, 0],
    "d": [1000, 2**31, 5],
    "e": [10000, 3, 2**32 - 1],
    "f": [100000, 0, 2**32 - 1],
}

Change = Callable[[dict[str, bytes]], dict[str, bytes]]


def refused(message: str):
    return pytest.raises(RefusalError, match=re.escape(message))


def flipped(message: bytes) -> bytes:
    """The same, but for one bit."""
    return bytes([message[0] ^ 1]) + message[1:]


def without(items: Items, *clients: str) -> dict[str, bytes]:
    return {client: value for client, value in items.items() if client not in clients}


def true_sum(clients: Iterable[str]) -> list[int]:
    return [sum(words) % 2**32 for words in zip(*(VECTORS[client] for client in clients), strict=True)]


class Group:
    """Clients of one session, and what carries messages between them and the server.

    Args:
        clients: their ids; all are invited.
        vectors: id to what it sums.
        losses: id to the phase in which it does not answer any more.
        changes: (phase, id) to what its answer is turned into.
        opened: id to the rounds that it helped to open.
    """

    def __init__(
        self,
        clients: str = "abcd",
        vectors: Mapping[str, list[int]] = VECTORS,
        losses: Mapping[str, str] | None = None,
        changes: Mapping[tuple[str, str], Change] | None = None,
        opened: Mapping[str, dict[str, list[str]]] | None = None,
        session: Session | None = None,
    ):
        self.session = session or Session.fresh("run", 1, clients)
        self.losses, self.changes = losses or {}, changes or {}
        self.words = len(vectors[clients[0]])
        self.members = {
            client: Participant(
                client,
                self.session,
                np.array(vectors[client], np.uint32),
                KEYS[client],
                ROSTER,
                {} if opened is None else opened[client],
            )
            for client in clients
        }
        self.asked: dict[str, dict[str, Items]] = {}  # phase to client to what it received
        self.answers: dict[str, dict[str, dict[str, bytes]]] = {}  # phase to client to its answer
        self.refusals: dict[str, str] = {}

    @staticmethod
    def reopened(member: Participant) -> Participant:
        """A client that has refused, as it was when shares were due."""
        member._phase = "mask"
        return member

    def advertise(self) -> dict[str, bytes]:
        return {
            client: member.advertise()["keys"]
            for client, member in self.members.items()
            if self.losses.get(client) != "advertise"
        }

    def exchange(self, phase: str, items: Mapping[str, Items]) -> Iterator[tuple[str, Items]]:
        self.asked[phase], self.answers[phase] = dict(items), {}
        for client, received in items.items():
            if self.losses.get(client) == phase:
                continue
            try:
                answer = getattr(self.members[client], phase)(received)
            except AccusationError as error:
                answer = {"accused": error.accused.encode()}
            except RefusalError as error:
                self.refusals[client] = str(error)
                continue
            self.answers[phase][client] = self.changes.get((phase, client), dict)(answer)
            yield client, self.answers[phase][client]

    def sum(self, keys: Items | None = None) -> SecureSum:
        return collect_sum(self.exchange, self.session, keys or self.advertise(), ROSTER, self.words)

    def before(self, phase: str, lost: str = "") -> dict[str, Items]:
        """What each client receives in a phase, after all earlier ones; `lost` are lost in phase mask."""
        keys = self.advertise()
        if phase == "share":
            return dict.fromkeys(self.members, keys)
        boxes = {client: member.share(keys) for client, member in self.members.items()}
        inbox = {c: {sender: sent[c] for sender, sent in boxes.items() if sender != c} for c in self.members}
        if phase == "mask":
            return {client: inbox[client] for client in self.members}
        alive = {client: member for client, member in self.members.items() if client not in lost}
        for client, member in alive.items():
            member.mask(inbox[client])
        if phase == "confirm":
            return dict.fromkeys(alive, listing(alive))
        signatures = {client: member.confirm(listing(alive))["signature"] for client, member in alive.items()}
        return dict.fromkeys(alive, signatures)


def listing(clients: Iterable[str]) -> dict[str, bytes]:
    """A list of survivors as it is sent."""
    return dict.fromkeys(clients, b"")


def public() -> bytes:
    return X25519PrivateKey.generate().public_key().public_bytes_raw()


def signed_keys(client: str, session: Session, signer: str = "", /, **parts: bytes) -> bytes:
    """What a dishonest client advertises: keys of its choice, signed by itself or another one."""
    chosen = {"encryption": public(), "masking": public(), "committed": os.urandom(32)} | parts
    body = b"".join(chosen.values())
    return body + KEYS[signer or client].sign(session.context + b"keys" + json.dumps(client).encode() + body)


def given_shares(group: Group, owner: str) -> list[tuple[int, bytes]]:
    """The shares of an owner's secret that clients gave in phase unmask; all of them advertised keys."""
    place = {client: i + 1 for i, client in enumerate(sorted(group.members))}
    return [(place[giver], items[owner]) for giver, items in group.answers["unmask"].items()]


def vector_of(group: Group, client: str) -> np.ndarray:
    """The masked vector that the server received."""
    return np.frombuffer(group.answers["mask"][client]["vector"], "<u4")


# --- sums ---


@pytest.mark.parametrize("clients", ["abc", "abcd", "abcde"])
def test_sum_is_right_and_nobody_is_lost(clients):
    group = Group(clients)
    result = group.sum()
    assert result.vector.dtype == np.uint32
    assert result.vector.tolist() == true_sum(clients)
    assert result.survivors == tuple(clients)
    assert result.lost == {}
    assert group.refusals == {}


def test_sum_of_three_by_hand():
    # 1 + 10 + 100; -1 - 2 + 2³¹; 7
    assert Group("abc").sum().vector.tolist() == [111, 2**31 - 3, 7]


def test_sum_is_right_whatever_the_ids_look_like():
    names = ("", '"a"', "klient é", "0")
    keys = {name: Ed25519PrivateKey.generate() for name in names}
    roster = {name: key.public_key() for name, key in keys.items()}
    session = Session.fresh("run", 1, names)
    group = Group()
    group.session = session
    group.members = {
        name: Participant(name, session, np.array([i, 1, 2], np.uint32), keys[name], roster, {})
        for i, name in enumerate(names)
    }
    result = collect_sum(group.exchange, session, group.advertise(), roster, 3)
    assert result.vector.tolist() == [6, 4, 8]


@pytest.mark.parametrize("phase", ["advertise", "share", "mask"])
@pytest.mark.parametrize(("clients", "lost"), [("abcd", "a"), ("abcd", "c"), ("abcde", "e")])
def test_client_lost_before_its_vector_arrived_is_left_out(phase, clients, lost):
    result = Group(clients, losses={lost: phase}).sum()
    left = [client for client in clients if client != lost]
    assert len(left) == default_threshold(len(clients))
    assert result.vector.tolist() == true_sum(left)
    assert result.survivors == tuple(left)
    assert result.lost == {lost: phase}


@pytest.mark.parametrize("phase", ["confirm", "unmask"])
@pytest.mark.parametrize(("clients", "lost"), [("abcd", "a"), ("abcd", "d"), ("abcde", "b")])
def test_client_lost_after_its_vector_arrived_counts(phase, clients, lost):
    result = Group(clients, losses={lost: phase}).sum()
    assert result.vector.tolist() == true_sum(clients)
    assert result.survivors == tuple(clients)
    assert result.lost == {lost: phase}


def test_losses_in_different_phases_each_say_their_phase():
    session = Session("run", 1, "00" * 16, tuple("abcdef"), 5)
    assert Group("abcdef", losses={"b": "share"}, session=session).sum().lost == {"b": "share"}
    with pytest.raises(RoundFailedError, match=r"lost: e, b\)"):
        Group("abcdef", losses={"b": "mask", "e": "advertise"}, session=session).sum()


def test_client_lost_in_mask_and_another_in_unmask_down_to_the_threshold():
    # 6 clients and t = 5: only one may be lost, so that a second loss in the same phase or a later one ends the round
    result = Group("abcdef", losses={"f": "mask"}).sum()
    assert result.vector.tolist() == true_sum("abcde")
    with pytest.raises(RoundFailedError, match="4 of 6 clients are left after phase unmask"):
        Group("abcdef", losses={"f": "mask", "a": "unmask"}).sum()


@pytest.mark.parametrize("phase", ["advertise", *PHASES])
@pytest.mark.parametrize("clients", ["abc", "abcd", "abcde"])
def test_one_client_too_few_ends_the_round_with_the_phase(phase: str, clients: str):
    threshold = default_threshold(len(clients))
    losses = dict.fromkeys(clients[threshold - 1 :], phase)
    message = (
        rf"round 1: {threshold - 1} of {len(clients)} clients are left after phase {phase} .*{threshold} are needed"
    )
    with pytest.raises(RoundFailedError, match=message):
        Group(clients, losses=losses).sum()


@pytest.mark.parametrize("phase", ["advertise", "share", "mask"])
def test_one_client_too_few_names_the_lost_ones(phase):
    with pytest.raises(RoundFailedError, match=r"\(lost: b, d\)"):
        Group("abcd", losses={"b": phase, "d": phase}).sum()


def test_round_with_too_few_survivors_asks_for_no_share():
    group = Group("abcd", losses={"b": "mask", "d": "mask"})
    with pytest.raises(RoundFailedError):
        group.sum()
    assert list(group.asked) == ["share", "mask"]


words = st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=2)


@settings(max_examples=15, deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys("abcd", words)), st.sampled_from("abcd"), st.sampled_from(PHASES))
def test_sum_is_right_for_any_vectors_and_any_loss(vectors, lost, phase):
    result = Group("abcd", vectors, losses={lost: phase}).sum()
    counted = [client for client in "abcd" if client != lost or phase in ("confirm", "unmask")]
    assert result.vector.tolist() == [sum(vectors[c][i] for c in counted) % 2**32 for i in range(2)]


# --- what a session must be ---


def joins(session: Session, client: str = "a", roster=ROSTER) -> Participant:
    return Participant(client, session, np.zeros(3, np.uint32), KEYS[client], roster, {})


@pytest.mark.parametrize(
    ("invited", "threshold", "message"),
    [
        ("ab", 2, "2 clients: at least 3 are needed"),
        ("a", 1, "1 clients: "),
        ("", 0, "0 clients: "),
        ("abc", 2, "threshold 2 of 3 clients: it must be from 3 to 3"),
        ("abcd", 2, "threshold 2 of 4 clients: it must be from 3 to 4"),
        ("abcdef", 4, "threshold 4 of 6 clients: it must be from 5 to 6"),  # 4 is 2n/3, and t must be more
        ("abcd", 0, "threshold 0 of 4"),
        ("abcd", -1, "threshold -1 of 4"),
        ("abcd", 5, "threshold 5 of 4 clients: it must be from 3 to 4"),
        ("abccd", 4, "not sorted, or names a client twice"),
        ("bacd", 3, "not sorted, or names a client twice"),
    ],
)
def test_unsafe_session_is_refused(invited, threshold, message):
    with refused(message):
        joins(Session("run", 1, "00" * 16, tuple(invited), threshold))


@pytest.mark.parametrize(("invited", "threshold"), [("abc", 3), ("abcd", 3), ("abcd", 4), ("abcdef", 5)])
def test_safe_session_is_joined(invited, threshold):
    joins(Session("run", 1, "00" * 16, tuple(invited), threshold))


@pytest.mark.parametrize("count", range(3, 60))
def test_default_threshold_allows_one_list_only_if_fewer_than_a_third_collude(count):
    # who colludes signs two lists, everybody else one: n + c signatures, and two lists need 2 t
    colluding = (count - 1) // 3
    assert colluding < count / 3
    assert 2 * default_threshold(count) > count + colluding


def test_client_that_was_not_invited_does_not_join():
    with refused("client a was not invited to this session"):
        joins(Session.fresh("run", 1, "bcd"))


def test_session_with_a_client_that_is_not_in_the_roster_is_refused():
    with refused("client z is invited, but not in the roster"):
        joins(Session.fresh("run", 1, "abz"))


@pytest.mark.parametrize(
    "change", [{"run": "other"}, {"round_index": 2}, {"nonce": "11" * 16}, {"invited": ("a", "b", "c", "e")}]
)
def test_every_field_of_a_session_is_part_of_its_context(change):
    session = Session("run", 1, "00" * 16, tuple("abcd"), 3)
    assert dataclasses.replace(session, **change).context != session.context


def test_threshold_is_part_of_the_context():
    session = Session("run", 1, "00" * 16, tuple("abcd"), 3)
    assert dataclasses.replace(session, threshold=4).context != session.context


def test_two_attempts_at_a_round_differ():
    assert Session.fresh("run", 1, "abcd").context != Session.fresh("run", 1, "abcd").context


def test_nothing_that_is_advertised_is_ever_the_same_again():
    session = Session("run", 1, "00" * 16, tuple("abcd"), 3)
    packed = [joins(session, client).advertise()["keys"] for client in "aab"]
    for start in (0, 32, 64, 96):
        assert len({keys[start : start + 32] for keys in packed}) == 3


# --- attacks on public keys ---


@pytest.fixture
def keyed() -> tuple[Group, dict[str, bytes]]:
    """Four clients that advertised their keys."""
    group = Group()
    return group, dict(group.before("share")["a"])


def test_keys_signed_by_their_owner_are_accepted(keyed):
    group, keys = keyed
    assert group.members["a"].share({**keys, "b": signed_keys("b", group.session)}).keys() == set("abcd")


def test_own_keys_changed_are_refused(keyed):
    group, keys = keyed
    with refused("this client's own keys were changed"):
        group.members["a"].share({**keys, "a": flipped(keys["a"])})


def test_own_keys_of_an_earlier_attempt_with_the_same_session_are_refused():
    # properly signed by this very client, in the same context: only the comparison with its own keys helps
    first = Group()
    again = Group(session=first.session)
    old, keys = first.advertise(), again.advertise()
    with refused("this client's own keys were changed"):
        again.members["a"].share({**keys, "a": old["a"]})


@pytest.mark.parametrize("start", [0, 32, 64, 96], ids=["encryption", "masking", "commitment", "signature"])
def test_any_changed_part_of_another_clients_keys_is_refused(keyed, start):
    group, keys = keyed
    swapped = keys["b"][:start] + public() + keys["b"][start + 32 :]
    with refused("keys of client b: the signature is not that of the roster's key"):
        group.members["a"].share({**keys, "b": swapped})


def test_keys_signed_for_another_session_are_refused(keyed):
    group, keys = keyed
    replayed = Group().advertise()
    with refused("keys of client b: the signature"):
        group.members["a"].share({**keys, "b": replayed["b"]})


@pytest.mark.parametrize("change", [{"run": "other"}, {"round_index": 2}, {"threshold": 4}])
def test_keys_signed_for_a_session_that_differs_in_one_field_are_refused(keyed, change):
    group, keys = keyed
    with refused("keys of client b: the signature"):
        group.members["a"].share({**keys, "b": signed_keys("b", dataclasses.replace(group.session, **change))})


@pytest.mark.parametrize("signer", ["c", "z"])
def test_keys_signed_by_another_client_are_refused(keyed, signer):
    group, keys = keyed
    with refused("keys of client b: the signature"):
        group.members["a"].share({**keys, "b": signed_keys("b", group.session, signer)})


def test_keys_of_one_client_under_the_name_of_another_are_refused(keyed):
    group, keys = keyed
    with refused("keys of client b: the signature"):
        group.members["a"].share({**keys, "b": keys["c"]})


def test_client_whose_own_signing_key_is_not_the_rosters_refuses_to_go_on():
    session = Session.fresh("run", 1, "abcd")
    impostor = Participant("a", session, np.zeros(3, np.uint32), KEYS["z"], ROSTER, {})
    others = {client: signed_keys(client, session) for client in "bcd"}
    with refused("keys of client a: the signature"):
        impostor.share({**others, "a": impostor.advertise()["keys"]})


@pytest.mark.parametrize(("part", "at"), [("encryption", 0), ("masking", 32), ("committed", 64)])
@pytest.mark.parametrize("owner", ["a", "c"])
def test_two_clients_with_the_same_key_are_refused(keyed, part, at, owner):
    group, keys = keyed
    packed = signed_keys("b", group.session, **{part: keys[owner][at : at + 32]})
    with refused("two clients advertise the same key"):
        group.members["a"].share({**keys, "b": packed})


def test_one_key_for_two_purposes_is_refused(keyed):
    group, keys = keyed
    key = public()
    with refused("two clients advertise the same key"):
        group.members["a"].share({**keys, "b": signed_keys("b", group.session, encryption=key, masking=key)})


@pytest.mark.parametrize("size", [0, 159, 161])
def test_keys_of_another_length_are_refused(keyed, size):
    group, keys = keyed
    with refused(f"public keys of {size} bytes, not 160"):
        group.members["a"].share({**keys, "b": (keys["b"] + b"0")[:size]})


def test_too_few_keys_are_refused(keyed):
    group, keys = keyed
    with refused("keys of 2 clients only, fewer than 3"):
        group.members["a"].share(without(keys, "c", "d"))


def test_keys_without_its_own_are_refused(keyed):
    group, keys = keyed
    with refused("keys leave out this client itself"):
        group.members["a"].share(without(keys, "a"))


def test_keys_of_a_stranger_are_refused(keyed):
    # e is in the roster and signs properly, but was not invited
    group, keys = keyed
    with refused("keys of clients that have no part in this session"):
        group.members["a"].share({**keys, "e": signed_keys("e", group.session)})


def test_encryption_key_of_low_order_is_refused(keyed):
    group, keys = keyed
    with refused("a public key is not a point of full order"):
        group.members["a"].share({**keys, "b": signed_keys("b", group.session, encryption=bytes(32))})


def test_masking_key_of_low_order_is_refused():
    # the shares of b are a proper box, so that its masking key is what a comes to
    group = Group("abc")
    encryption = X25519PrivateKey.generate()
    b = group.members["b"]
    parts = {"encryption": encryption.public_key().public_bytes_raw(), "masking": bytes(32)}
    b._encryption_key = encryption
    keys = {client: member.advertise()["keys"] for client, member in group.members.items()}
    keys["b"] = b._keys["b"] = signed_keys("b", group.session, **parts)
    boxes = {client: member.share(keys) for client, member in group.members.items()}
    with refused("a public key is not a point of full order"):
        group.members["a"].mask({"b": boxes["b"]["a"], "c": boxes["c"]["a"]})


# --- attacks on shares ---


@pytest.fixture
def shared() -> tuple[Group, dict[str, Items]]:
    """Four clients that sent their shares, and what each receives."""
    group = Group()
    return group, group.before("mask")


@pytest.mark.parametrize("at", [0, 31, 32, 79, 80, 143, 144, 207])  # ends of key, shares, signature and digests
def test_shares_changed_in_transit_are_refused(shared, at):
    group, inbox = shared
    box = inbox["a"]["b"]
    changed = box[:at] + flipped(box[at:])
    with refused("the shares of client b were changed"):
        group.members["a"].mask({**inbox["a"], "b": changed})


@pytest.mark.parametrize(
    ("box", "what"),
    [(b"", "are malformed"), (bytes(207), "are malformed"), (bytes(208), "were changed")],
    ids=["empty", "too short", "zeros"],
)
def test_made_up_shares_are_refused(shared, box, what):
    group, inbox = shared
    with refused(f"the shares of client b {what}"):
        group.members["a"].mask({**inbox["a"], "b": box})


def test_shares_of_another_sender_are_refused(shared):
    group, inbox = shared
    with refused("the shares of client b were changed"):
        group.members["a"].mask({**inbox["a"], "b": inbox["a"]["c"]})


def test_shares_for_another_receiver_are_refused(shared):
    group, inbox = shared
    with refused("the shares of client b were changed"):
        group.members["a"].mask({**inbox["a"], "b": inbox["c"]["b"]})


def test_own_shares_sent_back_as_anothers_are_refused(shared):
    # the two of them agree on one secret: only the direction tells the boxes apart
    group, inbox = shared
    with refused("the shares of client b were changed"):
        group.members["a"].mask({**inbox["a"], "b": inbox["b"]["a"]})


def test_shares_of_an_earlier_session_are_refused(shared):
    group, inbox = shared
    with refused("the shares of client b were changed"):
        group.members["a"].mask({**inbox["a"], "b": Group().before("mask")["a"]["b"]})


def test_shares_from_itself_are_refused(shared):
    group, inbox = shared
    with refused("the shares of client a are malformed"):
        group.members["a"].mask({**inbox["a"], "a": group.members["b"].reveal({}) or inbox["b"]["a"]})


def test_too_few_shares_are_refused(shared):
    group, inbox = shared
    with refused("shares of 2 clients only, fewer than 3"):
        group.members["a"].mask(without(inbox["a"], "c", "d"))


def test_shares_of_one_client_fewer_are_enough(shared):
    group, inbox = shared
    assert len(group.members["a"].mask(without(inbox["a"], "d"))["vector"]) == 12


@pytest.mark.parametrize("stranger", ["e", "z"])
def test_shares_of_a_stranger_are_refused(shared, stranger):
    group, inbox = shared
    with refused("shares of clients that have no part in this session"):
        group.members["a"].mask({**inbox["a"], stranger: inbox["a"]["b"]})


def test_shares_of_a_client_that_never_advertised_are_refused():
    group = Group(losses={"d": "advertise"})
    keys = group.advertise()
    boxes = {client: group.members[client].share(keys) for client in "abc"}
    with refused("shares of clients that have no part in this session"):
        group.members["a"].mask({"b": boxes["b"]["a"], "c": boxes["c"]["a"], "d": boxes["b"]["a"]})


# --- attacks on the list of survivors ---


@pytest.fixture
def masked() -> Group:
    """Four clients that sent their vectors."""
    group = Group()
    group.before("confirm")
    return group


@pytest.mark.parametrize(
    ("survivors", "message"),
    [
        ("bcd", "survivors leave out this client itself"),
        ("ab", "survivors of 2 clients only, fewer than 3"),
        ("a", "survivors of 1 clients only, fewer than 3"),
        ("abce", "survivors of clients that have no part in this session"),
        ("", "survivors leave out this client itself"),
    ],
)
def test_unsafe_list_of_survivors_is_refused(masked, survivors, message):
    with refused(message):
        masked.members["a"].confirm(listing(survivors))


def test_survivor_that_did_not_share_is_refused():
    group = Group()
    inbox = group.before("mask")
    group.members["a"].mask(without(inbox["a"], "d"))
    with refused("survivors of clients that have no part in this session"):
        group.members["a"].confirm(listing("abcd"))


def test_second_list_of_survivors_is_refused(masked):
    masked.members["a"].confirm(listing("abcd"))
    with refused("phase confirm was requested, but unmask comes next"):
        masked.members["a"].confirm(listing("abc"))


@pytest.fixture
def confirmed() -> tuple[Group, dict[str, bytes]]:
    """Four clients that all confirmed the same list, and their signatures."""
    group = Group()
    return group, dict(group.before("unmask")["a"])


def test_too_few_signatures_are_refused(confirmed):
    group, signatures = confirmed
    with refused("signatures of 2 clients only, fewer than 3"):
        group.members["a"].unmask(without(signatures, "c", "d"))


def test_own_signature_does_not_count_unless_it_is_sent(confirmed):
    group, signatures = confirmed
    with refused("2 signatures, fewer than 3"):
        group.members["a"].unmask(without(signatures, "a", "d"))


def test_signatures_of_others_alone_are_enough(confirmed):
    group, signatures = confirmed
    assert group.members["a"].unmask(without(signatures, "a")).keys() == set("abcd")


@pytest.mark.parametrize("signature", [b"", bytes(64), b"0" * 65], ids=["empty", "zeros", "too long"])
def test_made_up_signature_is_refused(confirmed, signature):
    group, signatures = confirmed
    with refused("survivors, as client b saw them: the signature is not that of the roster's key"):
        group.members["a"].unmask({**signatures, "b": signature})


def test_signature_of_another_client_is_refused(confirmed):
    group, signatures = confirmed
    with refused("survivors, as client b saw them: the signature"):
        group.members["a"].unmask({**signatures, "b": signatures["c"]})


def test_signature_of_the_same_list_in_another_session_is_refused(confirmed):
    group, signatures = confirmed
    other = Group().before("unmask")["b"]["b"]
    with refused("survivors, as client b saw them: the signature"):
        group.members["a"].unmask({**signatures, "b": other})


def test_signature_of_keys_is_no_signature_of_survivors(confirmed):
    group, signatures = confirmed
    with refused("survivors, as client b saw them: the signature"):
        group.members["a"].unmask({**signatures, "b": group.members["b"]._keys["b"][-64:]})


def test_signature_of_a_stranger_is_refused(confirmed):
    group, signatures = confirmed
    with refused("signatures of clients that have no part in this session"):
        group.members["a"].unmask({**signatures, "e": signatures["b"]})


def test_signature_of_a_lost_client_is_refused():
    group = Group()
    signatures = group.before("unmask", lost="d")["a"]
    with refused("signatures of clients that have no part in this session"):
        group.members["a"].unmask({**signatures, "d": signatures["b"]})


def signed_survivors(client: str, group: Group, survivors: str) -> bytes:
    """The signature of a dishonest client, of any list."""
    advertised = b"".join(json.dumps(name).encode() + keys for name, keys in sorted(group.members["a"]._keys.items()))
    seen = hashlib.sha256(advertised).digest()
    return KEYS[client].sign(group.session.context + b"survivors" + seen + json.dumps(list(survivors)).encode())


def two_lists() -> tuple[Group, dict[str, bytes], dict[str, bytes]]:
    """Signatures by clients that were told that f survived, and by those told that it did not; e signs both lists."""
    group = Group("abcdef")
    group.before("confirm")
    alive = {client: group.members[client].confirm(listing("abcdef"))["signature"] for client in "abf"}
    dead = {client: group.members[client].confirm(listing("abcde"))["signature"] for client in "cd"}
    alive["e"], dead["e"] = (signed_survivors("e", group, survivors) for survivors in ("abcdef", "abcde"))
    return group, alive, dead


@pytest.mark.parametrize("victim", "abcd")
@pytest.mark.parametrize("first", ["alive", "dead"])
def test_signatures_of_two_lists_cannot_be_mixed(victim, first):
    group, alive, dead = two_lists()
    mixed = {**alive, **dead} if first == "dead" else {**dead, **alive}
    with refused("the signature is not that of the roster's key"):
        group.members[victim].unmask(without(mixed, "f"))


@pytest.mark.parametrize("victim", "abcdf")
def test_neither_of_two_lists_of_survivors_has_enough_signatures(victim):
    group, alive, dead = two_lists()
    own = alive if victim in alive else dead
    assert max(len(alive), len(dead)) < group.session.threshold
    with refused(f"signatures of {len({*own, victim})} clients only, fewer than 5"):
        group.members[victim].unmask(own)


def test_enough_signatures_of_another_list_do_not_help():
    group = Group("abcdef")
    group.before("confirm")
    group.members["a"].confirm(listing("abcdef"))
    dead = {client: signed_survivors(client, group, "abcde") for client in "bcdef"}
    with refused("survivors, as client b saw them: the signature"):
        group.members["a"].unmask(dead)


def test_signatures_of_dishonest_clients_are_made_as_honest_ones_are():
    group = Group("abcd")
    group.before("confirm")
    signature = group.members["a"].confirm(listing("abcd"))["signature"]
    assert signature == signed_survivors("a", group, "abcd")  # Ed25519 is deterministic


def test_no_client_gives_shares_of_both_secrets_of_another():
    group = Group(losses={"d": "mask"})
    assert group.sum().survivors == tuple("abc")
    context = group.session.context
    for owner in "abcd":
        secrets = {Shamir.combine(given_shares(group, owner), False)}
        keys = group.asked["share"]["a"][owner]
        masking, committed = keys[32:64], keys[64:96]
        seeds = {seed for seed in secrets if private_key(seed, context).public_key().public_bytes_raw() == masking}
        selves = {seed for seed in secrets if commitment(seed, context) == committed}
        assert (len(seeds), len(selves)) == ((1, 0) if owner == "d" else (0, 1))
    assert {len(share) for items in group.answers["unmask"].values() for share in items.values()} == {16}


@pytest.mark.parametrize("survivors", ["abcd", "abc"])
def test_nothing_more_is_given_after_the_shares(survivors):
    group = Group()
    signatures = group.before("unmask", lost="".join(set("abcd") - set(survivors)))["a"]
    one = group.members["a"]
    one.unmask(signatures)
    for phase in ("advertise", "share", "mask", "confirm", "unmask"):
        with refused("was requested, but nothing comes next"):
            one.advertise() if phase == "advertise" else getattr(one, phase)(signatures)


def test_one_share_fewer_than_the_threshold_does_not_open_a_secret():
    group = Group("abcde")
    group.sum()
    shares, committed = given_shares(group, "c"), group.asked["share"]["a"]["c"][64:96]
    opens = [
        size
        for size in range(1, 6)
        for some in itertools.combinations(shares, size)
        if commitment(Shamir.combine(list(some), False), group.session.context) == committed
    ]
    assert opens == [4, 4, 4, 4, 4, 5]


# --- the order of phases ---


@pytest.mark.parametrize("due", ["advertise", *PHASES])
def test_every_other_phase_is_refused(due):
    for asked in ("advertise", *PHASES):
        if asked == due:
            continue
        group = Group()
        if due != "advertise":
            group.before(due)
        method = getattr(group.members["a"], asked)
        with refused(f"phase {asked} was requested, but {due} comes next"):
            method() if asked == "advertise" else method({})


@pytest.mark.parametrize("phase", PHASES)
def test_phase_is_answered_once(phase):
    group = Group()
    items = group.before(phase)["a"]
    method = getattr(group.members["a"], phase)
    method(items)
    with refused(f"phase {phase} was requested, but "):
        method(items)


@pytest.mark.parametrize("phase", PHASES)
def test_refused_phase_cannot_be_tried_again(phase):
    group = Group()
    items = group.before(phase)["a"]
    method = getattr(group.members["a"], phase)
    with pytest.raises(RefusalError):
        method({"z": b""})
    with refused(f"phase {phase} was requested, but "):
        method(items)


# --- a round opened before ---


@pytest.fixture
def opened() -> dict[str, dict[str, list[str]]]:
    """What each client remembers from session to session."""
    return {client: {} for client in "abcd"}


def attempt(opened, round_index: int = 1, **more) -> Group:
    return Group(opened=opened, session=Session.fresh("run", round_index, "abcd"), **more)


def test_second_opening_for_other_survivors_is_refused_at_confirm(opened):
    assert attempt(opened).sum().survivors == tuple("abcd")
    again = attempt(opened)
    again.before("confirm")
    for client in "abc":
        with refused("round 1 was opened before, for other survivors"):
            again.members[client].confirm(listing("abc"))


def test_second_opening_for_more_survivors_is_refused_too(opened):
    assert attempt(opened, losses={"d": "mask"}).sum().survivors == tuple("abc")
    again = attempt(opened)
    with pytest.raises(RoundFailedError, match="1 of 4 clients are left after phase confirm"):
        again.sum()
    assert set(again.refusals.values()) == {
        "round 1 was opened before, for other survivors (only a, b, c may take part)"
    }


def test_second_opening_is_refused_at_unmask_where_both_were_confirmed_in_parallel(opened):
    one, other = attempt(opened), attempt(opened)
    all_of_them = one.before("unmask")
    fewer = other.before("unmask", lost="d")
    for client in "abc":
        one.members[client].unmask(all_of_them[client])
        with refused("round 1 was opened before, for other survivors"):
            other.members[client].unmask(fewer[client])


def test_second_opening_for_the_same_survivors_is_allowed(opened):
    for _ in range(2):
        result = attempt(opened, losses={"d": "mask"}).sum()
        assert result.vector.tolist() == true_sum("abc")
    assert {client: rounds for client, rounds in opened.items() if rounds}.keys() == set("abc")


def test_another_round_may_have_other_survivors(opened):
    assert attempt(opened).sum().survivors == tuple("abcd")
    assert attempt(opened, round_index=2, losses={"d": "mask"}).sum().survivors == tuple("abc")


def test_round_that_was_only_confirmed_may_be_opened_for_others(opened):
    attempt(opened).before("unmask")
    assert attempt(opened, losses={"d": "mask"}).sum().survivors == tuple("abc")


@pytest.mark.parametrize("phase", ["confirm", "unmask"])
def test_refused_opening_is_not_remembered(opened, phase):
    group = attempt(opened)
    items = group.before(phase)["a"]
    with pytest.raises(RefusalError):
        getattr(group.members["a"], phase)(without(items, "b", "c"))
    assert opened["a"] == {}


def test_theta_that_was_opened_is_not_opened_for_others_in_another_round():
    memory: dict[str, list[str]] = {}
    OpenedRounds(memory, "run", 1, "00ff").note(["a", "b", "c"])
    again = OpenedRounds(memory, "run", 2, "00ff")
    again.check(["a", "b", "c"])
    with refused("the same adapter was opened before, for other survivors (only a, b, c may take part)"):
        again.check(["a", "b", "c", "d"])
    OpenedRounds(memory, "run", 2, "00fe").check(["a", "b", "d"])
    OpenedRounds(memory, "other", 2, "00ff").check(["a", "b", "d"])


def test_rounds_are_opened_in_their_order_and_one_for_one_theta():
    memory: dict[str, list[str]] = {"run/x/9": ["a"], "run 2/9": ["a"]}  # of other runs
    for index in (1, 3):
        OpenedRounds(memory, "run", index, f"theta {index}").check_order()
        OpenedRounds(memory, "run", index, f"theta {index}").note(["a", "b", "c"])
    OpenedRounds(memory, "run", 3, "theta 3").check_order()
    OpenedRounds(memory, "run", 4, "theta 3").check_order()
    with refused("round 2 was asked for after round 3, and no round comes twice"):
        OpenedRounds(memory, "run", 2, "theta 2").check_order()
    with refused("round 3 was opened before, for another adapter"):
        OpenedRounds(memory, "run", 3, "theta 4").check_order()


# --- the server among dishonest clients ---


@pytest.mark.parametrize(
    "faulty",
    [flipped, lambda packed: b"", lambda packed: packed + b"0", lambda packed: packed[:96] + bytes(64)],
    ids=["changed", "empty", "too long", "not signed"],
)
def test_client_whose_keys_are_not_signed_by_it_is_lost(faulty):
    group = Group()
    keys = group.advertise()
    result = group.sum({**keys, "d": faulty(keys["d"])})
    assert result.vector.tolist() == true_sum("abc")
    assert result.lost == {"d": "advertise"}
    assert all("d" not in asked for asked in group.asked.values())
    assert group.refusals == {}


def test_keys_of_a_client_that_was_not_invited_are_left_out():
    group = Group()
    result = group.sum({**group.advertise(), "e": signed_keys("e", group.session)})
    assert result.survivors == tuple("abcd")
    assert group.asked["share"]["a"].keys() == set("abcd")


@pytest.mark.parametrize(
    "change",
    [
        lambda items: {},
        lambda items: without(items, "a"),
        lambda items: {**items, "d": b""},
        lambda items: {**items, "e": b""},
        lambda items: {**items, "a": items["a"][:-1]},
        lambda items: {**items, "a": items["a"] + b"0"},
    ],
    ids=["none", "one too few", "one for itself", "one for a stranger", "too short", "too long"],
)
def test_client_whose_shares_have_a_wrong_form_is_found_and_lost_alone(change):
    group = Group(changes={("share", "d"): change})
    result = group.sum()
    assert result.culprits == ("d",)
    assert result.vector.tolist() == true_sum("abc")
    assert result.lost == {"d": "share: sent shares of a wrong size, or for the wrong clients"}
    assert group.refusals == {}
    assert group.asked["mask"].keys() == set("abc")


@pytest.mark.parametrize(
    "change",
    [lambda items: {}, lambda items: {"vector": items["vector"][:-1]}, lambda items: {"vector": items["vector"] * 2}],
    ids=["none", "too short", "too long"],
)
def test_client_whose_vector_has_another_length_is_lost(change):
    result = Group(changes={("mask", "d"): change}).sum()
    assert result.vector.tolist() == true_sum("abc")
    assert result.lost == {"d": "mask"}


@pytest.mark.parametrize(
    "change",
    [lambda items: {}, lambda items: {"signature": b""}, lambda items: {"signature": flipped(items["signature"])}],
    ids=["none", "empty", "changed"],
)
def test_wrong_signature_of_the_survivors_is_left_out(change):
    group = Group(changes={("confirm", "d"): change})
    assert group.sum().vector.tolist() == true_sum("abcd")
    assert group.asked["unmask"]["a"].keys() == group.asked["unmask"].keys() == set("abc")
    assert group.refusals == {}


@pytest.mark.parametrize(
    "change",
    [lambda items: {}, lambda items: without(items, "a"), lambda items: {**items, "e": bytes(16)}],
    ids=["none", "one too few", "one for a stranger"],
)
def test_shares_of_the_wrong_clients_are_left_out(change):
    # those of a come first, so that they would be used
    assert Group(changes={("unmask", "a"): change}).sum().vector.tolist() == true_sum("abcd")


class Intruder(Group):
    """Sends a second answer of every client, and answers of one that wasn't asked, in every phase."""

    def exchange(self, phase, items):
        for client, answer in super().exchange(phase, items):
            worthless = {name: bytes(len(value)) for name, value in answer.items()}
            yield "e", worthless
            yield client, answer
            yield "d", worthless
            yield client, worthless


def test_second_answers_and_answers_of_clients_that_were_not_asked_are_ignored():
    group = Intruder(losses={"d": "advertise"})
    result = group.sum()
    assert result.vector.tolist() == true_sum("abc")
    assert result.survivors == tuple("abc")
    assert group.refusals == {}


def wrong_shares(givers: str, owner: str) -> dict[tuple[str, str], Change]:
    """Changes that make these clients give random shares of one client's secret."""
    return dict.fromkeys((("unmask", giver) for giver in givers), lambda items: {**items, owner: os.urandom(16)})


@pytest.mark.parametrize(("owner", "losses"), [("b", {}), ("d", {}), ("d", {"d": "mask"}), ("a", {})])
def test_wrong_shares_that_leave_too_few_right_ones_end_the_round(owner, losses):
    # of its masking seed if it is lost, of b_v else; t = 3 of 4
    givers = "a" if losses else "ab"
    with pytest.raises(SpoiledRoundError, match="round 1: 2 of 4 clients are left after phase unmask") as spoiled:
        Group(losses=losses, changes=wrong_shares(givers, owner)).sum()
    assert spoiled.value.culprits == tuple(givers)
    reason = f"unmask: sent a wrong share of the secret of client {owner}"
    assert spoiled.value.lost == losses | dict.fromkeys(givers, reason)


@pytest.mark.parametrize("giver", "abcd")
@pytest.mark.parametrize("owner", "abcd")
def test_giver_of_a_wrong_share_is_named_where_enough_others_are_right(giver, owner):
    result = Group(changes=wrong_shares(giver, owner)).sum()
    assert result.vector.tolist() == true_sum("abcd")
    assert result.lost == {giver: f"unmask: sent a wrong share of the secret of client {owner}"}
    assert result.wrong == (giver,)


@pytest.mark.parametrize("share", [b"", b"0" * 15, b"0" * 17])
def test_client_whose_share_has_another_length_is_left_out(share):
    changes = {("unmask", "a"): lambda items: {**items, "b": share}}
    result = Group(changes=changes).sum()
    assert result.vector.tolist() == true_sum("abcd")
    assert result.lost == {"a": "unmask: sent shares of a wrong size, or of the wrong clients"}


@pytest.mark.parametrize("phase", ["confirm", "unmask"])
def test_clients_lost_after_their_vectors_arrived_are_named_where_too_few_are_left(phase):
    with pytest.raises(RoundFailedError, match=rf"after phase {phase} .* \(lost: b, d\)"):
        Group(losses={"b": phase, "d": phase}).sum()


# --- what the server screens, so that one faulty client does not stop all others ---


@pytest.mark.parametrize("part", ["encryption", "masking"])
def test_client_with_a_key_of_low_order_is_lost_alone(part):
    group = Group()
    group.members["d"].advertise = lambda: {"keys": signed_keys("d", group.session, **{part: bytes(32)})}
    result = group.sum()
    assert (result.survivors, result.lost) == (tuple("abc"), {"d": "advertise"})
    assert result.vector.tolist() == true_sum("abc")


def test_client_that_copies_another_ones_key_is_lost_alone():
    group = Group()
    group.members["d"].advertise = lambda: {
        "keys": signed_keys("d", group.session, masking=group.members["a"]._keys["a"][32:64])
    }
    result = group.sum()
    assert (result.survivors, result.lost) == (tuple("abc"), {"d": "advertise"})


def test_client_that_refused_once_is_out_of_the_session():
    group = Group()
    boxes = group.before("mask")["a"]
    one = group.members["a"]
    with refused("the shares of client b were changed"):
        one.mask({**boxes, "b": flipped(boxes["b"])})
    with refused("phase confirm was requested, but nothing comes next"):
        one.confirm(listing("abcd"))


def test_signatures_of_an_earlier_session_with_the_same_nonce_do_not_count():
    first = Group()
    old = first.before("unmask")["a"]
    second = Group(session=first.session)
    second.before("unmask")
    with refused("survivors, as client b saw them: the signature"):
        second.members["a"].unmask({"b": old["b"], "c": old["c"], "d": old["d"]})


@pytest.mark.parametrize("name", ["w", "v"])
def test_digest_of_the_payload_depends_on_everything_that_is_trained(name):
    base = {"v": torch.tensor([1.0, 2.0]), "w": torch.tensor([[3.0]])}
    other = {**base, name: base[name] + 1}
    renamed = {("x" if key == name else key): tensor for key, tensor in base.items()}
    shaped = {**base, name: base[name].reshape(1, 1, -1)}
    cast = {**base, name: base[name].double()}
    digests = {payload_digest(adapter, True) for adapter in (base, other, renamed, shaped, cast)}
    assert len(digests | {payload_digest(base, False)}) == 6
    assert payload_digest(dict(reversed(base.items())), True) == payload_digest(base, True)


def test_client_that_commits_to_another_secret_ends_the_round():
    group = Group()
    one = group.members["b"]
    honest = one.advertise

    def advertise() -> dict[str, bytes]:
        packed = honest()["keys"]
        own = signed_keys("b", group.session, encryption=packed[:32], masking=packed[32:64])
        one._keys["b"] = own
        return {"keys": own}

    one.advertise = advertise
    with pytest.raises(SpoiledRoundError, match="the shares of client b's secret don't fit") as spoiled:
        group.sum()
    assert spoiled.value.culprits == ("b",)


# --- what the server sees ---

ZEROS = dict.fromkeys("abc", [0] * 300_000)


@pytest.fixture(scope="module")
def seen() -> Group:
    """A session of three clients whose 300 000 words are all zero."""
    group = Group("abc", ZEROS)
    assert not group.sum().vector.any()
    return group


def uniform(words: np.ndarray) -> bool:
    """Whether all bytes and the words' top bytes are uniform: χ² with 256 bins, false by chance once in 250 000."""
    little = words.astype("<u4").view(np.uint8)
    for values in (little, little[3::4]):
        p = stats.chisquare(np.bincount(values, minlength=256)).pvalue
        if not 1e-6 < p < 1 - 1e-6:
            return False
    return True


def own_seed(group: Group, client: str) -> bytes:
    """b_u, as the server opens it."""
    return Shamir.combine(given_shares(group, client)[: group.session.threshold], False)


def test_test_of_uniformity_can_fail():
    generator = np.random.default_rng(1)
    assert uniform(generator.integers(0, 2**32, 300_000, np.uint32))
    assert not uniform(generator.integers(0, 2**31, 300_000, np.uint32))
    assert not uniform(np.arange(2**18, dtype=np.uint32))
    assert not uniform(np.zeros(300_000, np.uint32))


@pytest.mark.parametrize("client", "abc")
def test_masked_vector_is_uniform_though_the_vector_is_zero(seen, client):
    assert len(vector_of(seen, client)) == 300_000
    assert uniform(vector_of(seen, client))


@pytest.mark.parametrize("client", "abc")
def test_vector_stays_masked_when_its_own_mask_is_known(seen, client):
    # after the session the server knows every b_u; what hides a single vector then are the pairs' masks
    own = self_mask(own_seed(seen, client), seen.session.context, seen.words)
    assert uniform(vector_of(seen, client) - own)


@pytest.mark.parametrize("pair", ["ab", "ac", "bc"])
def test_sum_of_two_of_three_stays_masked(seen, pair):
    total = sum(
        vector_of(seen, client) - self_mask(own_seed(seen, client), seen.session.context, seen.words) for client in pair
    )
    assert uniform(np.asarray(total))


def test_sum_of_masked_vectors_is_uniform_before_unmasking(seen):
    assert uniform(sum((vector_of(seen, client) for client in "abc"), np.zeros(seen.words, np.uint32)))


def test_masked_vectors_of_two_clients_and_their_differences_are_uniform(seen):
    for one, two in itertools.combinations("abc", 2):
        assert uniform(vector_of(seen, one) - vector_of(seen, two))


def test_vector_that_arrives_too_late_stays_masked():
    # d is counted as lost, so that the server opens its masking seed; then its vector comes, and b_d still hides it
    group = Group("abcd", dict.fromkeys("abcd", [0] * 300_000))
    late: dict[str, np.ndarray] = {}

    def kept(items: dict[str, bytes]) -> dict[str, bytes]:
        late["d"] = np.frombuffer(items["vector"], "<u4")
        return {}

    group.changes = {("mask", "d"): kept}
    assert group.sum().lost == {"d": "mask"}
    keys, context = group.asked["share"]["a"], group.session.context
    private = private_key(Shamir.combine(given_shares(group, "d"), False), context)
    left = late["d"].copy()
    for peer in "abc":
        left -= pairwise_mask("d", private, peer, keys[peer][32:64], context, group.words)
    assert uniform(left)


def test_same_inputs_give_other_masked_vectors_in_every_session():
    session = Session.fresh("run", 1, "abcd")
    vectors = {client: list(range(64)) for client in "abcd"}
    sent = []
    for _ in range(3):
        group = Group("abcd", vectors, session=session)
        group.sum()
        sent += [vector_of(group, client) for client in "abcd"]
    for one, two in itertools.combinations(sent, 2):
        assert (one == two).sum() < 3
    for one in sent:
        assert (one == np.arange(64)).sum() < 3


@pytest.mark.parametrize("losses", [{}, {"d": "mask"}], ids=["nobody lost", "one lost"])
def test_masked_vectors_alone_do_not_sum_up_to_the_sum(losses):
    vectors = dict.fromkeys("abcd", [5] * 64)
    group = Group("abcd", vectors, losses)
    total = group.sum().vector
    plain = sum((vector_of(group, client) for client in group.answers["mask"]), np.zeros(64, np.uint32))
    assert (plain == total).sum() < 3


def test_vector_is_given_up_once_it_was_sent():
    group = Group()
    inbox = group.before("mask")
    assert group.members["a"]._vector.tolist() == VECTORS["a"]
    group.members["a"].mask(inbox["a"])
    assert len(group.members["a"]._vector) == 0
