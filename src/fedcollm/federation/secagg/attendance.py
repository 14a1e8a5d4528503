"""Which clients are left in a session of secure aggregation, and what becomes of the round if they are too few."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fedcollm.errors import RoundFailedError, SpoiledRoundError
from fedcollm.federation.secagg.opening import ATTEMPTS, Opening
from fedcollm.messages import Session


@dataclass
class Attendance:
    """Which clients are left in a session.

    Attributes:
        session: the session.
        lost: id of each lost client to the phase in which it was lost.
        culprits: id of each client that has proven to be dishonest when it shared its secrets, to what it did.
    """

    session: Session
    lost: dict[str, str] = field(default_factory=dict[str, str])
    culprits: dict[str, str] = field(default_factory=dict[str, str])

    def accused(self, accusations: Mapping[str, str]) -> None:
        """Note why clients sent an accusation, accuser to accused, and no vector."""
        self.lost.update({one: f"mask: can't open the shares of client {of}" for one, of in accusations.items()})

    def blame(self, phase: str, reasons: Mapping[str, str]) -> None:
        """Note what clients did that only dishonest ones do. They are lost, though their vectors may be in the sum."""
        told = {client: f"{phase}: {reason}" for client, reason in reasons.items()}
        self.culprits.update(told)
        self.lost.update(told)

    def record(
        self, phase: str, answered: Collection[str], asked: Iterable[str], wrong: Mapping[str, str] | None = None
    ) -> None:
        """Note which of the clients that were asked in a phase gave no valid answer, and why, where it is known.

        Raises:
            RoundFailedError: fewer than t clients are left.
            SpoiledRoundError: so it is because clients broke the protocol.
        """
        wrong = {client: f"{phase}: {reason}" for client, reason in (wrong or {}).items()}
        gone = {client: phase for client in asked if client not in answered and client not in self.lost}
        self.lost.update(gone | wrong)
        if len(answered) < self.session.threshold:
            message = (
                f"round {self.session.round_index}: {len(answered)} of {len(self.session.invited)} clients are left "
                f"after phase {phase} of secure aggregation, and {self.session.threshold} are needed (lost: "
                f"{', '.join(self.lost)}). "
            )
            if culprits := self.culprits | wrong:
                told = "; ".join(f"client {client}: {reason}" for client, reason in culprits.items())
                raise SpoiledRoundError(
                    f"{message}The run goes on without this round ({told}).", tuple(culprits), self.lost
                )
            raise RoundFailedError(f"{message}The last good state is kept: bring the clients back, and resume.")

    def check_survivors(self, survivors: Sequence[str], opening: Opening) -> None:
        """Check that all survivors of an earlier session are there again, whose clients open the sum for no others.

        Raises:
            RoundFailedError: some are missing.
            SpoiledRoundError: so they were several times.
        """
        missing = [client for client in opening.survivors if client not in survivors]
        if not missing:
            return
        again = opening.attempts < ATTEMPTS
        message = (
            f"round {self.session.round_index} was opened before by {', '.join(opening.survivors)}, and of these "
            f"{', '.join(missing)} did not come back. "
        )
        if again:
            opening.begin(opening.survivors)
            raise RoundFailedError(f"{message}The last good state is kept: bring the clients back, and resume.")
        raise SpoiledRoundError(f"{message}The run goes on without this round.", (), self.lost)
