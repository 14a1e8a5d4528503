"""What a client has for its own operator: none of it is ever sent."""

from collections.abc import Callable
from dataclasses import dataclass, field

from fedcollm.messages import Adapter, Score, readable
from fedcollm.progress import say


def _nowhere(line: str) -> None:
    """Write a line nowhere."""


@dataclass
class Operator:
    """The one who runs a client: sees why a training failed, and keeps the client's own adapter.

    In a simulation, the experimenter is the operator of every client.

    Attributes:
        store: saves the adapter that the client keeps after the last round; None if it keeps none.
        journal: writes one line to a file that only the operator reads.
        failure: why the last request could not be carried out on the client's data; None if it could be.
        kept: the score of the adapter that the client keeps; None without one.
    """

    store: Callable[[Adapter], None] | None = None
    journal: Callable[[str], None] = _nowhere
    failure: Exception | None = field(init=False, default=None)
    kept: Score | None = field(init=False, default=None)

    def tell(self, where: str, error: Exception) -> None:
        """Tell the operator why the client answers with a zero change, or with a score of zero."""
        self.failure = self.failure or error
        line = readable(f"{where}: failed, and the answer does not show it: {type(error).__name__}: {error}")
        say(line)
        self.journal(line)
