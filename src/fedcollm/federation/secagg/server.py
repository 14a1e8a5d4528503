"""The server's side of secure aggregation: it carries the messages of each phase, and removes the masks from the sum.

The protocol and its assumptions are described in `protocol`.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedcollm.errors import RefusalError, RoundFailedError
from fedcollm.federation.secagg.masks import agree, commitment, pairwise_mask, private_key, self_mask
from fedcollm.federation.secagg.protocol import SEED_BYTES, Items, split_keys, survivors_message, verify_keys
from fedcollm.messages import Session

#: Sends each client its items of a phase, and yields the answers that arrive in time.
Exchange = Callable[[str, Mapping[str, Items]], Iterable[tuple[str, Items]]]

_LARGEST_SEARCH = 200  # subsets of shares to try if some shares are wrong


@dataclass(frozen=True)
class SecureSum:
    """The result of a session.

    Attributes:
        vector: Σ x_u mod 2³² over the survivors, [m] uint32.
        survivors: ids of the clients in the sum, sorted.
        lost: id of each lost client to the phase in which it was lost. A client that was lost in `confirm` or `unmask`
            is a survivor too, because its vector is in the sum.
    """

    vector: np.ndarray
    survivors: tuple[str, ...]
    lost: Mapping[str, str]


def collect_sum(
    exchange: Exchange, session: Session, keys: Items, roster: Mapping[str, Ed25519PublicKey], words: int
) -> SecureSum:
    """Lead the clients through a session, from the keys that they advertised to the sum of their vectors.

    Args:
        exchange: sends a phase's items to the clients, and yields the answers that arrive in time.
        session: the session.
        keys: client id to the public keys that the client advertised.
        roster: client id to public signing key.
        words: m, the length of a vector.

    Raises:
        RoundFailedError: fewer than t clients are left after a phase, or too many shares are wrong.
    """
    attendance = _Attendance(session)
    keys = _valid_keys(keys, session, roster)
    attendance.record("advertise", keys, session.invited)
    answers = _first_answers(exchange("share", dict.fromkeys(keys, keys)), keys)
    boxes = {sender: items for sender, items in answers if set(items) == keys.keys() - {sender}}
    attendance.record("share", boxes, keys)
    total, survivors = _masked_sum(exchange, boxes, words)
    attendance.record("mask", survivors, boxes)
    signatures = _signatures(exchange, survivors, survivors_message(session, keys, survivors), roster)
    attendance.record("confirm", signatures, survivors)
    answers = _first_answers(exchange("unmask", dict.fromkeys(signatures, signatures)), signatures)
    shares = {client: items for client, items in answers if _are_shares(items, boxes)}
    attendance.record("unmask", shares, signatures)
    return SecureSum(_unmasked(total, session, keys, boxes, survivors, shares), tuple(survivors), attendance.lost)


@dataclass
class _Attendance:
    """Which clients are left in a session.

    Attributes:
        session: the session.
        lost: id of each lost client to the phase in which it was lost.
    """

    session: Session
    lost: dict[str, str] = field(default_factory=dict[str, str])

    def record(self, phase: str, answered: Collection[str], asked: Iterable[str]) -> None:
        """Note which of the clients that were asked in a phase gave no valid answer.

        Raises:
            RoundFailedError: fewer than t clients are left.
        """
        self.lost.update({client: phase for client in asked if client not in answered})
        if len(answered) < self.session.threshold:
            raise RoundFailedError(
                f"round {self.session.round_index}: {len(answered)} of {len(self.session.invited)} clients are left "
                f"after phase {phase} of secure aggregation, and {self.session.threshold} are needed (lost: "
                f"{', '.join(self.lost)}). The last good state is kept: bring the clients back, and resume."
            )


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


def _masked_sum(exchange: Exchange, boxes: Mapping[str, Items], words: int) -> tuple[np.ndarray, list[str]]:
    """Deliver the encrypted shares to their receivers, and add up the masked vectors that come back.

    Args:
        exchange: sends and receives.
        boxes: sender to receiver to encrypted shares.
        words: m, the length of a vector.

    Returns:
        (Σ y_u mod 2³², [m] uint32; ids of the survivors, sorted).
    """
    inbox = {client: {s: items[client] for s, items in boxes.items() if s != client} for client in boxes}
    total, survivors = np.zeros(words, np.uint32), list[str]()
    for client, items in _first_answers(exchange("mask", inbox), boxes):
        if len(items.get("vector", b"")) == 4 * words:
            total += np.frombuffer(items["vector"], "<u4")
            survivors.append(client)
    return total, sorted(survivors)


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


def _are_shares(items: Items, sharers: Collection[str]) -> bool:
    return set(items) == set(sharers) and all(len(share) == SEED_BYTES for share in items.values())


def _unmasked(
    total: np.ndarray,
    session: Session,
    keys: Items,
    sharers: Iterable[str],
    survivors: Sequence[str],
    shares: Mapping[str, Items],
) -> np.ndarray:
    """Subtract the survivors' own masks from the sum, and the pairwise masks that they added for lost clients.

    Args:
        total: Σ y_u mod 2³², [m] uint32; changed in place.
        session: the session.
        keys: client id to advertised keys, of U₁.
        sharers: ids of the clients that shared their secrets, U₂.
        survivors: ids of the clients in the sum, U₃.
        shares: giver to owner to a share of the owner's secret.

    Raises:
        RoundFailedError: too many shares of a secret are wrong.
    """
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
    """Return a client's secret, combined from t shares that fit its commitment. Some of the shares may be wrong.

    Args:
        points: shares, each with its place.
        session: the session.
        client: id of the client that the secret belongs to.
        fits: whether a secret is the one that the client committed to.

    Raises:
        RoundFailedError: no t shares fit.
    """
    for some in itertools.islice(itertools.combinations(points, session.threshold), _LARGEST_SEARCH):
        if fits(seed := Shamir.combine(list(some), False)):
            return seed
    raise RoundFailedError(
        f"round {session.round_index}: the shares of client {client}'s secret don't fit what it committed to, so this "
        "client or another one sent wrong shares. The last good state is kept: look at the clients, and resume."
    )
