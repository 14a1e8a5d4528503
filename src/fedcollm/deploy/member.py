"""A client of a deployment: it answers requests by the roster that is in force, and stops when the run is over."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from fedcollm.deploy.roster import Roster
from fedcollm.deploy.roster_keeper import NotAdmittedError, RemovedError, RosterKeeper
from fedcollm.errors import UserError
from fedcollm.messages import Answer, FinishRequest, Request, TrainRequest
from fedcollm.progress import say
from fedcollm.transports.endpoint import Answers

_LINGER_SECONDS = 5.0  # in which the server fetches the last answer; it looks twice a second
_WAIT_SECONDS = 5.0  # between two looks for a roster that this client is on


@dataclass
class Member:
    """A client, which is built anew whenever the roster changes.

    Attributes:
        keeper: fetches and keeps the roster.
        build: returns the client that takes part with a roster.
        save: saves what the last message of a run brings.
        stopped: is set when the client is to stop.
        ended: why it stops; None if it was interrupted or the run is finished.
        finished: whether the run is finished.
    """

    keeper: RosterKeeper
    build: Callable[[Roster], Answers] = field(repr=False)
    save: Callable[[FinishRequest], None] = field(repr=False)
    stopped: threading.Event = field(default_factory=threading.Event)
    ended: UserError | None = field(init=False, default=None)
    finished: bool = field(init=False, default=False)
    inner: Answers | None = field(init=False, default=None, repr=False)
    _roster: Roster | None = field(init=False, default=None, repr=False)

    def answer(self, request: Request) -> Answer:
        """Do what the request asks for; before it trains, look for a newer roster.

        Raises:
            RefusalError: as the client raises it.
            UserError: the roster can't be trusted, or this client is no longer on it.
        """
        if isinstance(request, TrainRequest) or self.inner is None:
            self._renew()
        assert self.inner is not None
        return self.inner.answer(request)

    def _renew(self) -> None:
        try:
            self.use(self.keeper.refreshed())
        except RemovedError as error:
            self.end(error)
            raise
        except httpx.HTTPError as error:
            kept = self.keeper.kept()
            if kept is None:
                raise UserError(f"the roster can't be fetched: {error}") from error
            self.use(kept)

    def use(self, roster: Roster) -> None:
        """Take part with a roster from now on."""
        if roster != self._roster:
            self.inner, self._roster = self.build(roster), roster
            say(f"roster {roster.version}: {', '.join(roster.clients)}")

    def wait(self) -> None:
        """Return once the server runs with a roster that this client is on, or the client is stopped.

        Raises:
            UserError: the client was removed, or the roster can't be trusted.
        """
        said = ""
        while not self.stopped.is_set():
            try:
                self.use(self.keeper.refreshed())
                return
            except NotAdmittedError as error:
                reason = self._waiting() or str(error)
            except httpx.HTTPStatusError as error:
                reason = f"the server does not run yet (HTTP {error.response.status_code})"
            except httpx.TransportError as error:
                if "certificate" in str(error).lower():
                    return  # the connection that comes next says what is wrong with it
                reason = f"the server does not answer ({error})"
            if reason != said:
                say(f"{reason} Trying again.")
            said = reason
            self.stopped.wait(_WAIT_SECONDS)

    def _waiting(self) -> str:
        """Return that this client is admitted and what it waits for; empty if it is not."""
        try:
            self.keeper.check_newest()
        except (httpx.HTTPError, UserError):
            return ""
        return (
            f"client {self.keeper.member.client} is admitted, and the rounds so far are without it: the server takes "
            "it up with the next round, or when it is started."
        )

    def finish(self, request: FinishRequest) -> None:
        """Save the final adapter, and stop a while later: the SuperLink hands out no answer of a node that has left."""
        self.save(request)
        self.finished = True
        timer = threading.Timer(_LINGER_SECONDS, self.stopped.set)
        timer.daemon = True
        timer.start()

    def end(self, error: UserError) -> None:
        """Stop, for this reason."""
        self.ended = error
        self.stopped.set()

    def explain(self, error: UserError) -> UserError:
        """Return the better reason why the server does not accept this client, if the newest roster gives one."""
        try:
            self.keeper.check_newest()
        except (RemovedError, NotAdmittedError) as reason:
            return reason
        except (httpx.HTTPError, UserError):
            pass
        return error
