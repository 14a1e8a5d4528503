"""Disputes about shares that can't be opened: whoever is to blame is found, and nobody else."""

import json
import os

import pytest
from tests.federation.secagg.test_protocol import KEYS, Change, Group, flipped, listing, refused, true_sum

from fedcollm.errors import SpoiledRoundError
from fedcollm.federation.secagg.protocol import Items

PLACES = {"key": slice(0, 32), "shares": slice(32, 80), "signature": slice(80, 144), "digests": slice(144, 208)}


def garbled(group: Group, receivers: str, part: str = "shares", sender: str = "d") -> Change:
    """What a dishonest sender makes of its boxes for some receivers: one part is another, and it signs the whole."""

    def change(items: Items) -> Items:
        return dict(items) | {receiver: made(receiver, items[receiver]) for receiver in receivers}

    def made(receiver: str, box: bytes) -> bytes:
        parts = {name: box[place] for name, place in PLACES.items()}
        if part != "signature":
            parts[part] = bytes(32) if part == "key" else flipped(parts[part])
            head = group.session.context + b"box" + json.dumps([sender, receiver]).encode()
            parts["signature"] = KEYS[sender].sign(head + parts["key"] + parts["shares"] + parts["digests"])
        else:
            parts[part] = flipped(parts[part])
        return b"".join(parts.values())

    return change


@pytest.mark.parametrize("part", PLACES)
def test_sender_of_shares_that_cannot_be_opened_is_found_and_the_round_goes_on_where_enough_can_open_theirs(part):
    group = Group()
    group.changes = {("share", "d"): garbled(group, "a", part)}
    result = group.sum()
    assert result.vector.tolist() == true_sum("bcd")
    assert result.culprits == ("d",)
    what = "that it did not sign" if part == "signature" else "that can't be opened"
    assert result.lost == {
        "a": "mask: can't open the shares of client d",
        "d": f"share: sent client a shares {what}",
    }
    assert ("reveal" in group.asked) == (part != "signature")


@pytest.mark.parametrize("part", PLACES)
@pytest.mark.parametrize("receivers", ["ab", "abc"])
def test_sender_that_leaves_too_few_is_found(part, receivers):
    group = Group()
    group.changes = {("share", "d"): garbled(group, receivers, part)}
    with pytest.raises(SpoiledRoundError, match=r"after phase mask .* The run goes on without this round") as spoiled:
        group.sum()
    assert spoiled.value.culprits == ("d",)


@pytest.mark.parametrize("accused", ["a", "b", "c"])
def test_false_accuser_is_found_and_the_accused_stays(accused):
    group = Group(changes={("mask", "d"): lambda items: {"accused": accused.encode()}})
    result = group.sum()
    assert result.vector.tolist() == true_sum("abc")
    assert result.culprits == ("d",)
    assert result.lost == {"d": f"share: accused client {accused}, whose shares it can open"}
    assert group.asked["reveal"] == {accused: {"d": b""}}
    assert group.refusals == {}


@pytest.mark.parametrize("accused", [b"", b"d", b"e", b"\xff", b"[/x]" * 1000], ids=range(5))
def test_accusation_that_no_client_can_make_is_the_accusers_fault(accused):
    result = Group(changes={("mask", "d"): lambda items: {"accused": accused}}).sum()
    assert result.vector.tolist() == true_sum("abc")
    assert result.lost == {"d": "share: accused a client that sent it nothing"}


@pytest.mark.parametrize(
    "answer",
    [lambda items: {}, lambda items: {"a": b""}, lambda items: {"a": os.urandom(32)}, lambda items: {"a": bytes(31)}],
    ids=["none", "empty", "another key", "too short"],
)
def test_accused_that_does_not_reveal_the_key_is_to_blame(answer):
    group = Group(changes={("reveal", "d"): answer})
    group.changes |= {("share", "d"): garbled(group, "a")}
    assert group.sum().culprits == ("d",)


def test_two_false_accusers_among_seven_are_found():
    """With n = 7, two can be dishonest."""
    ids = "abcdefg"
    lie = dict.fromkeys((("mask", client) for client in "fg"), lambda items: {"accused": b"a"})
    group = Group(ids, {client: [1, 2, 3] for client in ids}, changes=lie)
    result = group.sum()
    assert (result.vector.tolist(), result.culprits) == ([5, 10, 15], ("f", "g"))


def test_boxes_are_revealed_once_and_with_those_of_dishonest_clients_never_to_as_many_as_open_a_secret():
    group = Group("abcde")  # t = 4, one dishonest: at most two others may learn theirs
    group.before("confirm")
    with refused("the keys of 3 boxes were asked for; at most 2 are given, once"):
        group.members["a"].reveal(listing("bcd"))
    with refused("at most 2 are given, once"):  # nothing more is given after a refusal
        group.members["a"].reveal(listing("b"))
    assert group.members["b"].reveal(listing("ac")).keys() == {"a", "c"}
    with refused("at most 2 are given, once"):
        group.members["b"].reveal(listing("d"))
    with refused("at most 2 are given, once"):
        group.members["c"].reveal(listing("z"))
