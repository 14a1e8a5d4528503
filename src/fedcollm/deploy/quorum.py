"""Who must be there before a round begins, and the wait for them."""

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from fedcollm.config import RunConfig, asked_clients
from fedcollm.errors import FedcollmError, UserError
from fedcollm.messages import TrainRequest, default_threshold
from fedcollm.progress import say

_LOOK_SECONDS, _SAY_SECONDS = 1.0, 60.0


class RosterChangedError(FedcollmError):
    """The operator has changed the roster, and rounds are to go on with the new one."""


def needed(config: RunConfig, asked: int) -> int:
    """Return how many clients a round needs, of those that it asks.

    Args:
        config: the run's configuration.
        asked: number of clients that are asked.
    """
    if config.federation.secure_aggregation.enabled:
        return config.federation.secure_aggregation.threshold or default_threshold(asked)
    return config.federation.min_clients


def check_roster(config: RunConfig, clients: Collection[str]) -> None:
    """Refuse a roster that is too short for any round.

    Raises:
        UserError: says what to do.
    """
    asked = asked_clients(len(clients), config.federation.fraction)
    least = max(needed(config, asked), 3 if config.federation.secure_aggregation.enabled else 1)
    if asked < least:
        raise UserError(
            f"a round asks {asked} of the {len(clients)} clients on the roster ({', '.join(clients)}), and {least} are "
            "needed. Admit another client with `fedcollm deploy admit`."
        )


@dataclass
class Quorum:
    """The wait until enough clients are connected for a round.

    Attributes:
        config: the run's configuration.
        connected: returns the ids of the admitted clients that are connected at the moment.
        changed: returns whether the operator has changed the roster since the server took it up.
        show: is told what is waited for.
        wait: waits for a number of seconds.
        clock: returns the time in seconds.
    """

    config: RunConfig
    connected: Callable[[], Collection[str]] = field(repr=False)
    changed: Callable[[], bool] = field(repr=False)
    show: Callable[[str], None] = field(repr=False)
    wait: Callable[[float], object] = field(default_factory=lambda: threading.Event().wait, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    def wait_for(self, request: TrainRequest, asked: Collection[str]) -> None:
        """Return once enough of the clients that are asked are connected, and say at most once a minute who is not.

        Args:
            request: what they are asked.
            asked: ids of the clients.

        Raises:
            RosterChangedError: the roster was changed meanwhile.
        """
        count = request.session.threshold if request.session else needed(self.config, len(asked))
        if request.keep or count > len(asked):
            return  # it waits for nobody, or fails whoever comes
        said = float("-inf")
        while len(there := set(asked) & set(self.connected())) < count:
            if self.changed():
                raise RosterChangedError("the roster was changed")
            if self.clock() - said >= _SAY_SECONDS:
                said, missing = self.clock(), [client for client in asked if client not in there]
                text = f"waiting for clients: {len(there)} of {len(asked)} are connected, and {count} are needed"
                say(f"{text}. Not connected: {', '.join(missing)}")
                self.show(text)
            self.wait(_LOOK_SECONDS)
