"""The server's side of secure aggregation: it carries the phases, and takes the masks off the sum.

Protocol and assumptions: `secure_aggregation`.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedcollm.errors import RefusalError, RoundFailedError
from fedcollm.federation.secagg.masks import agree, commitment, pairwise_mask, private_key, self_mask
from fedcollm.federation.secagg.protocol import SEED_BYTES, Items, split_keys, survivors_message, verify_keys
from fedcollm.messages import Session

#: Sends each client its items in a phase; yields the answers of those that answer in time.
Exchange = Callable[[str, Mapping[str, Items]], Iterable[tuple[str, Items]]]

_LARGEST_SEARCH = 200  # subsets of shares to try, if some are wrong


@dataclass(frozen=True)
class SecureSum:
    """What the server ends a session with.

    Attributes:
        vector: Σ x_u mod 2³² over the survivors, [m] uint32.
        survivors: ids, sorted.
        lost: id of every client that was lost to the phase; one lost in `confirm` or `unmask` is a survivor all the
            same, as its vector is in the sum.
    """

    vector: np.ndarray
    survivors: tuple[str, ...]
    lost: Mapping[str, str]


def collect_sum(
    exchange: Exchange, session: Session, keys: Items, roster: Mapping[str, Ed25519PublicKey], words: int
) -> SecureSum:
    """The server's side of a session, from the keys that were advertised.

    Args:
        exchange: carries a phase's items to the clients and brings back those answers that come in time.
        session: the session.
        keys: client to what it advertised.
        roster: id to public signing key.
        words: m.

    Raises:
        RoundFailedError: fewer than t clients are left, or a share is wrong.
    """
    lost: dict[str, str] = {}

    def keep(phase: str, answers: Collection[str], asked: Iterable[str]) -> None:
        missing = {client: phase for client in asked if client not in answers}
        lost.update(missing)
        if len(answers) < session.threshold:
            names = ", ".join(lost)
            raise RoundFailedError(
                f"round {session.round_index}: {len(answers)} of {len(session.invited)} clients are left after phase "
                f"{phase} of secure aggregation, and {session.threshold} are needed (lost: {names}). "
                "The last good state is kept: bring the clients back, and resume."
            )

    keys = _sound(keys, session, roster)
    keep("advertise", keys, session.invited)
    answers = _answers(exchange("share", dict.fromkeys(keys, keys)), keys)
    boxes = {sender: items for sender, items in answers if items.keys() == keys.keys() - {sender}}
    keep("share", boxes, keys)
    inbox = {client: {s: items[client] for s, items in boxes.items() if s != client} for client in boxes}
    total, survivors = np.zeros(words, np.uint32), []
    for client, items in _answers(exchange("mask", inbox), boxes):
        if len(items.get("vector", b"")) == 4 * words:
            total += np.frombuffer(items["vector"], "<u4")
            survivors.append(client)
    survivors.sort()
    keep("mask", survivors, boxes)
    message = survivors_message(session, keys, survivors)
    listed = dict.fromkeys(survivors, dict.fromkeys(survivors, b""))
    signatures = {
        client: items["signature"]
        for client, items in _answers(exchange("confirm", listed), survivors)
        if _signed(roster[client], items.get("signature", b""), message)
    }
    keep("confirm", signatures, survivors)
    answers = _answers(exchange("unmask", dict.fromkeys(signatures, signatures)), signatures)
    shares = {client: items for client, items in answers if _are_shares(items, boxes)}
    keep("unmask", shares, signatures)
    return SecureSum(_unmasked(total, session, keys, boxes, survivors, shares), tuple(survivors), lost)


def _answers(answers: Iterable[tuple[str, Items]], asked: Collection[str]) -> Iterator[tuple[str, Items]]:
    """The first answer of each client that was asked."""
    waited_for = set(asked)
    for client, items in answers:
        if client in waited_for:
            waited_for.remove(client)
            yield client, items


def _sound(keys: Items, session: Session, roster: Mapping[str, Ed25519PublicKey]) -> dict[str, bytes]:
    """Those keys that no client will refuse: signed, of full order, and no copy of an earlier client's."""
    probe, seen, sound = X25519PrivateKey.generate(), set(), {}
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
            sound[client] = packed
    return sound


def _are_shares(items: Items, sharers: Collection[str]) -> bool:
    return items.keys() == set(sharers) and all(len(share) == SEED_BYTES for share in items.values())


def _signed(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _unmasked(
    total: np.ndarray,
    session: Session,
    keys: Items,
    sharers: Iterable[str],
    survivors: Sequence[str],
    shares: Mapping[str, Items],
) -> np.ndarray:
    """Take the survivors' own masks, and what they added for the lost ones, off the sum."""
    place = {client: i + 1 for i, client in enumerate(sorted(keys))}
    context = session.context
    for client in sharers:
        points = [(place[giver], shares[giver][client]) for giver in sorted(shares)]
        _, masking_key, committed, _ = split_keys(keys[client])
        if client in survivors:
            seed = _secret(points, session, client, lambda seed, c=committed: commitment(seed, context) == c)
            total -= self_mask(seed, context, len(total))
            continue
        seed = _secret(points, session, client, lambda seed, k=masking_key: _public(seed, context) == k)
        private = private_key(seed, context)
        for peer in survivors:
            public = split_keys(keys[peer])[1]
            total += pairwise_mask(client, private, peer, public, context, len(total))
    return total


def _public(seed: bytes, context: bytes) -> bytes:
    return private_key(seed, context).public_key().public_bytes_raw()


def _secret(points: Sequence[tuple[int, bytes]], session: Session, client: str, fits: Callable[[bytes], bool]) -> bytes:
    """A client's secret from shares of which some may be wrong: the first t that give one that fits.

    Raises:
        RoundFailedError: no t shares do.
    """
    for some in itertools.islice(itertools.combinations(points, session.threshold), _LARGEST_SEARCH):
        if fits(seed := Shamir.combine(list(some), False)):
            return seed
    raise RoundFailedError(
        f"round {session.round_index}: the shares of client {client}'s secret don't fit what it committed to, so this "
        "client or another one sent wrong ones. The last good state is kept: look at the clients, and resume."
    )
