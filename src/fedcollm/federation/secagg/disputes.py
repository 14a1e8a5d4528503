"""Who is to blame where a client accuses another one of shares that can't be opened: `boxes` says why this is sound."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedcollm.federation.secagg.boxes import Box, most_revealed
from fedcollm.federation.secagg.protocol import Items, split_keys
from fedcollm.messages import Session

#: Sends each client its items of a phase, and yields the answers that arrive in time.
Exchange = Callable[[str, Mapping[str, Items]], Iterable[tuple[str, Items]]]


@dataclass(frozen=True)
class Court:
    """What the server knows when it judges.

    Attributes:
        session: the session.
        keys: client id to advertised keys.
        boxes: sender to receiver to the bytes of a box, as the server received them.
        roster: client id to public signing key.
    """

    session: Session
    keys: Items
    boxes: Mapping[str, Items]
    roster: Mapping[str, Ed25519PublicKey]

    def judge(self, exchange: Exchange, accusations: Mapping[str, str]) -> dict[str, str]:
        """Ask the accused for the keys of the disputed boxes, and return who is to blame.

        Args:
            exchange: sends and receives.
            accusations: accuser to accused. One that no client can make is the accuser's fault.

        Returns:
            Client id to what it did.
        """
        blamed, disputed = dict[str, str](), dict[str, list[str]]()
        for accuser, accused in accusations.items():
            if accused == accuser or accused not in self.boxes:
                blamed[accuser] = "accused a client that sent it nothing"
            elif not self._box(accused, accuser).is_signed(self.boxes[accused][accuser], self.roster[accused]):
                blamed[accused] = f"sent client {accuser} shares that it did not sign"
            else:
                disputed.setdefault(accused, []).append(accuser)
        most = most_revealed(len(self.session.invited), self.session.threshold)
        asked = {accused: dict.fromkeys(by, b"") for accused, by in disputed.items() if len(by) <= most}
        revealed = dict(exchange("reveal", asked)) if asked else {}
        for accused, accusers in disputed.items():
            for accuser in accusers:
                if self._is_right(accused, accuser, revealed.get(accused, {}).get(accuser, b"")):
                    blamed[accuser] = f"accused client {accused}, whose shares it can open"
                else:
                    blamed[accused] = f"sent client {accuser} shares that can't be opened"
        return blamed

    def _is_right(self, sender: str, receiver: str, revealed: bytes) -> bool:
        receiver_key = split_keys(self.keys[receiver])[0]
        return self._box(sender, receiver).is_right(self.boxes[sender][receiver], revealed, receiver_key)

    def _box(self, sender: str, receiver: str) -> Box:
        return Box(self.session.context, sender, receiver)
