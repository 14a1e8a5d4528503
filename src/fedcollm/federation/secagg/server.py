"""The server's side of secure aggregation: it carries the messages of each phase, and removes the masks from the sum.

The protocol and its assumptions are described in `protocol`.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedcollm.errors import RefusalError, SpoiledRoundError
from fedcollm.federation.secagg.attendance import Attendance
from fedcollm.federation.secagg.boxes import ACCUSED, BOX_BYTES, DIGEST_BYTES, SEED_BYTES
from fedcollm.federation.secagg.disputes import Court, Exchange
from fedcollm.federation.secagg.masks import agree, commitment, pairwise_mask, private_key, self_mask, share_digests
from fedcollm.federation.secagg.opening import Opening, SecureSum
from fedcollm.federation.secagg.protocol import Items, split_keys, survivors_message, verify_keys
from fedcollm.messages import Session

_LARGEST_SEARCH = 200  # subsets of shares to try if some shares are wrong


def collect_sum(
    exchange: Exchange,
    session: Session,
    keys: Items,
    roster: Mapping[str, Ed25519PublicKey],
    words: int,
    opening: Opening | None = None,
) -> SecureSum:
    """Lead the clients through a session, from the keys that they advertised to the sum of their vectors.

    Args:
        exchange: sends a phase's items to the clients, and yields the answers that arrive in time.
        session: the session.
        keys: client id to the public keys that the client advertised.
        roster: client id to public signing key.
        words: m, the length of a vector.
        opening: what is known of an earlier session of the round; it is kept up to date.

    Raises:
        RoundFailedError: fewer than t clients are left after a phase.
        SpoiledRoundError: the clients have been asked to open the sum, and it can't be opened; or too few are left
            because one of them broke the protocol.
    """
    opening, attendance = opening or Opening(session.payload), Attendance(session)
    keys = _valid_keys(keys, session, roster)
    attendance.record("advertise", keys, session.invited)
    boxes, odd = _boxes(exchange, keys)
    attendance.blame("share", odd)
    attendance.record("share", boxes, keys)
    total, survivors, accusations = _masked_sum(exchange, boxes, words, opening.survivors)
    attendance.accused(accusations)
    attendance.blame("share", Court(session, keys, boxes, roster).judge(exchange, accusations))
    attendance.record("mask", survivors, boxes)
    attendance.check_survivors(survivors, opening)
    signatures = _signatures(exchange, survivors, survivors_message(session, keys, survivors), roster)
    attendance.record("confirm", signatures, survivors)
    opening.begin(survivors)
    parties = _Parties(session, keys, boxes, survivors)
    shares, wrong = _shares(exchange, parties, signatures)
    attendance.record("unmask", shares, signatures, wrong)
    vector, culprits = _unmasked(total, parties, shares, attendance), tuple(attendance.culprits)
    result = SecureSum(vector, tuple(survivors), attendance.lost, tuple(wrong), culprits)
    opening.finish(result)
    return result


@dataclass(frozen=True)
class _Parties:
    """Who takes part in a session, and what they have sent.

    Attributes:
        session: the session.
        keys: client id to advertised keys, of U₁.
        boxes: sender to receiver to encrypted shares and their digests; the senders are U₂.
        survivors: ids of the clients in the sum, U₃.
    """

    session: Session
    keys: Items
    boxes: Mapping[str, Items]
    survivors: Sequence[str]


def _first_answers(answers: Iterable[tuple[str, Items]], asked: Collection[str]) -> Iterator[tuple[str, Items]]:
    """Yield the first answer of each client that was asked."""
    waited_for = set(asked)
    for client, items in answers:
        if client in waited_for:
            waited_for.remove(client)
            yield client, items


def _valid_keys(keys: Items, session: Session, roster: Mapping[str, Ed25519PublicKey]) -> dict[str, bytes]:
    """Return the keys that no client will refuse: signed, of full order, and different from each earlier client's."""
    probe, seen, valid = X25519PrivateKey.generate(), set[bytes](), dict[str, bytes]()
    for client, packed in keys.items():
        try:
            verify_keys(client, packed, session, roster)
            publics = split_keys(packed)[:3]
            for public in publics[:2]:
                agree(probe, public, session.context, b"probe")
        except RefusalError:
            continue
        if len({*seen, *publics}) == len(seen) + len(publics):
            seen.update(publics)
            valid[client] = packed
    return valid


def _boxes(exchange: Exchange, keys: Items) -> tuple[dict[str, Items], dict[str, str]]:
    """Return the encrypted shares of each client, by sender, and what is wrong with those that have another form."""
    boxes, odd = dict[str, Items](), dict[str, str]()
    for sender, items in _first_answers(exchange("share", dict.fromkeys(keys, keys)), keys):
        sizes = {client: DIGEST_BYTES if client == sender else BOX_BYTES for client in keys}
        if {client: len(box) for client, box in items.items()} == sizes:
            boxes[sender] = items
        else:
            odd[sender] = "sent shares of a wrong size, or for the wrong clients"
    return boxes, odd


def _masked_sum(
    exchange: Exchange, boxes: Mapping[str, Items], words: int, only: Collection[str] = ()
) -> tuple[np.ndarray, list[str], dict[str, str]]:
    """Deliver the encrypted shares to their receivers, and add up the masked vectors that come back.

    Args:
        exchange: sends and receives.
        boxes: sender to receiver to encrypted shares.
        words: m, the length of a vector.
        only: ids of the clients that may be in the sum; all of them if there are none.

    Returns:
        (Σ y_u mod 2³², [m] uint32; ids of the survivors, sorted; accuser to accused, which is empty where it has no
        part in this).
    """
    inbox = {client: {s: items[client] for s, items in boxes.items() if s != client} for client in boxes}
    total, survivors, accusations = np.zeros(words, np.uint32), list[str](), dict[str, str]()
    for client, items in _first_answers(exchange("mask", inbox), boxes):
        if ACCUSED in items:
            named = items[ACCUSED].decode(errors="replace")
            accusations[client] = named if named in boxes else ""
        elif len(items.get("vector", b"")) == 4 * words and (client in only or not only):
            total += np.frombuffer(items["vector"], "<u4")
            survivors.append(client)
    return total, sorted(survivors), accusations


def _signatures(
    exchange: Exchange, survivors: Sequence[str], message: bytes, roster: Mapping[str, Ed25519PublicKey]
) -> dict[str, bytes]:
    """Send every survivor the list of survivors; return the valid signatures of that list, by client id."""
    listed = dict.fromkeys(survivors, dict.fromkeys(survivors, b""))
    return {
        client: items["signature"]
        for client, items in _first_answers(exchange("confirm", listed), survivors)
        if _is_signed(roster[client], items.get("signature", b""), message)
    }


def _is_signed(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _shares(exchange: Exchange, parties: _Parties, signatures: Items) -> tuple[dict[str, Items], dict[str, str]]:
    """Ask for the shares that open the sum.

    Returns:
        (giver to owner to a share of the owner's secret; giver to what is wrong with its shares).
    """
    right, wrong = dict[str, Items](), dict[str, str]()
    for giver, items in _first_answers(exchange("unmask", dict.fromkeys(signatures, signatures)), signatures):
        if reason := _odd_shares(giver, items, parties):
            wrong[giver] = reason
        else:
            right[giver] = items
    return right, wrong


def _odd_shares(giver: str, items: Items, parties: _Parties) -> str | None:
    """Return what is wrong with the shares of a giver; None if they are those that it was given."""
    if set(items) != set(parties.boxes) or any(len(share) != SEED_BYTES for share in items.values()):
        return "sent shares of a wrong size, or of the wrong clients"
    for owner, share in items.items():
        at = 0 if owner in parties.survivors else 1
        promised = parties.boxes[owner][giver][-DIGEST_BYTES:][32 * at : 32 * at + 32]
        padded = share + bytes(SEED_BYTES) if at == 0 else bytes(SEED_BYTES) + share
        if share_digests(parties.session.context, owner, giver, padded)[32 * at : 32 * at + 32] != promised:
            return f"sent a wrong share of the secret of client {owner}"
    return None


def _unmasked(total: np.ndarray, parties: _Parties, shares: Mapping[str, Items], attendance: Attendance) -> np.ndarray:
    """Subtract the survivors' own masks from the sum, and the pairwise masks that they added for lost clients.

    Args:
        total: Σ y_u mod 2³², [m] uint32; changed in place.
        parties: who takes part.
        shares: giver to owner to a right share of the owner's secret.
        attendance: who was lost.

    Raises:
        SpoiledRoundError: a client has shared something else than it committed to.
    """
    keys, context = parties.keys, parties.session.context
    place = {client: i + 1 for i, client in enumerate(sorted(keys))}
    for client in parties.boxes:
        points = [(place[giver], shares[giver][client]) for giver in sorted(shares)]
        _, masking_key, committed, _ = split_keys(keys[client])
        if client in parties.survivors:
            seed = _secret(points, client, lambda seed, c=committed: commitment(seed, context) == c, attendance)
            total -= self_mask(seed, context, len(total))
            continue
        seed = _secret(points, client, lambda seed, k=masking_key: _public(seed, context) == k, attendance)
        private = private_key(seed, context)
        for peer in parties.survivors:
            public = split_keys(keys[peer])[1]
            total += pairwise_mask(client, private, peer, public, context, len(total))
    return total


def _public(seed: bytes, context: bytes) -> bytes:
    return private_key(seed, context).public_key().public_bytes_raw()


def _secret(
    points: Sequence[tuple[int, bytes]], client: str, fits: Callable[[bytes], bool], attendance: Attendance
) -> bytes:
    """Return a client's secret, combined from t shares that fit its commitment.

    Args:
        points: shares, each with its place. All of them are those that the client gave.
        client: id of the client that the secret belongs to.
        fits: whether a secret is the one that the client committed to.
        attendance: who was lost.

    Raises:
        SpoiledRoundError: no t shares fit, so that the client itself is to blame.
    """
    for some in itertools.islice(itertools.combinations(points, attendance.session.threshold), _LARGEST_SEARCH):
        if fits(seed := Shamir.combine(list(some), False)):
            return seed
    reason = "unmask: shared something else than the secret that it committed to"
    raise SpoiledRoundError(
        f"round {attendance.session.round_index}: the shares of client {client}'s secret don't fit what it committed "
        "to. The run goes on without this round and without this client.",
        (client,),
        attendance.lost | {client: reason},
    )
