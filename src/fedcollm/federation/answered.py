"""Which rounds a client has answered, so that a server can't ask for one again, or for one that the run does not have.

A server that asks for the same θ with other survivors, or goes back to an earlier round, would learn one client's
update as the difference of two sums. So it would if a client answered a retry with another update, since its data has
changed, or a training that had failed goes well the second time, or the noise is new. What is remembered here outlives
the client's process.
"""

import hashlib
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from fedcollm.errors import RefusalError
from fedcollm.federation.statistics import asked_for
from fedcollm.messages import TrainRequest
from fedcollm.storage import replacing


def check_round(request: TrainRequest, rounds: int | None) -> None:
    """Refuse the index of a round that the run does not have.

    Statistics belong to round 0, and a request to keep the final adapter to the round after the last one.

    Args:
        request: the request.
        rounds: the number of rounds of the run; None if it is not known.

    Raises:
        RefusalError: says which rounds there are.
    """
    index = request.round_index
    if type(index) is not int:  # False and 0.0 are equal to 0, but have other names on the disk
        raise RefusalError(f"the index of a round is {index!r}, which is not an integer")
    if rounds is None or asked_for(request):
        return
    if request.keep and index != rounds + 1:
        raise RefusalError(
            f"the final adapter is kept after round {rounds}, the last one, and this is round {_short(index)}"
        )
    if not request.keep and not 1 <= index <= rounds:
        raise RefusalError(f"round {_short(index)} was asked for, and this run has the rounds from 1 to {rounds}")


def _short(index: int) -> str:
    return str(index) if abs(index) < 10**12 else "of more than 12 digits"


class LastAnswer:
    """What a client sent in its last round, so that a retry of the round gets the same bytes.

    Args:
        file: where it is kept, readable by its owner only; the next round's answer replaces it.
    """

    def __init__(self, file: Path):
        self._file = file

    def get(self, name: str) -> bytes | None:
        """Return the bytes that were kept under a name; None if they are not there, or damaged."""
        try:
            kept = self._file.read_bytes()
        except FileNotFoundError:
            return None
        head, data = kept[:64], kept[64:]
        return data if head == _head(name, data) else None

    def keep(self, name: str, data: bytes) -> None:
        """Keep bytes under a name, and forget all others.

        Raises:
            OSError: they can't be written, so that they must not be sent either.
        """
        with replacing(self._file, mode=0o600) as temporary:
            temporary.write_bytes(_head(name, data) + data)

    def forget(self) -> None:
        """Forget everything, once the run is over."""
        self._file.unlink(missing_ok=True)


def _head(name: str, data: bytes) -> bytes:
    return hashlib.sha256(name.encode()).digest() + hashlib.sha256(data).digest()


class PlainRounds:
    """The rounds that a client has answered with a plain update.

    Args:
        memory: keeps `answered/RUN`, the last round.
        run: name of the run.
    """

    def __init__(self, memory: MutableMapping[str, Any], run: str):
        self._memory, self._last = memory, f"answered/{run}"

    def check(self, request: TrainRequest) -> None:
        """Refuse a round that is not above the last one. Who carries the answers repeats the last one on its own.

        Raises:
            RefusalError: says which round was answered.
        """
        last = self._memory.get(self._last)
        if last is None or request.round_index > last:
            return
        if request.round_index < last:
            raise RefusalError(
                f"round {request.round_index} was asked for after round {last}, and no round comes twice"
            )
        raise RefusalError(f"round {last} was answered before, and only the same request gets the same answer again")

    def note(self, request: TrainRequest) -> None:
        """Remember a round before its answer leaves."""
        self._memory[self._last] = request.round_index


class SentVectors:
    """The last round for which a client has joined a session of secure aggregation, and with what.

    A server chooses which clients open a sum, so that a client can't go by what it has helped to open: in a round that
    it joined once, it never sends anything else.

    Args:
        memory: keeps `vector/RUN`: the last round, and a digest of the name of what was sent in it.
        run: name of the run.
    """

    def __init__(self, memory: MutableMapping[str, Any], run: str):
        self._memory, self._key = memory, f"vector/{run}"

    def is_sent(self, round_index: int, name: str) -> bool:
        """Return whether the client has joined this round with the vector of this name.

        Raises:
            RefusalError: it has joined a later round, or this one with another vector.
        """
        last, _, digest = str(self._memory.get(self._key, "-1")).partition(" ")
        if round_index > int(last):
            return False
        if round_index < int(last):
            raise RefusalError(f"round {round_index} was asked for after round {last}, and no round comes twice")
        if digest != hashlib.sha256(name.encode()).hexdigest():
            raise RefusalError(f"round {last} was joined before, for another request")
        return True

    def note(self, round_index: int, name: str) -> None:
        """Remember a round before the client's keys leave."""
        self._memory[self._key] = f"{round_index} {hashlib.sha256(name.encode()).hexdigest()}"


class OpenedRounds:
    """The rounds whose sum a client has helped to open.

    Args:
        memory: keeps, for `RUN/ROUND` and for `RUN/θ/DIGEST`, the survivors whose sum was opened. An entry is written
            before the client gives its shares.
        run: name of the run.
        round_index: index of the round.
        theta: digest of θ; empty if it is not known.
    """

    def __init__(self, memory: MutableMapping[str, list[str]], run: str, round_index: int, theta: str = ""):
        self._memory, self._run, self._index, self._theta = memory, run, round_index, theta

    def check_order(self) -> None:
        """Refuse a round before the last one that was opened, and another θ for that one.

        Raises:
            RefusalError: says which round was opened.
        """
        start = f"{self._run}/"
        places = [name.removeprefix(start) for name in self._memory if name.startswith(start)]
        opened = [int(place) for place in places if place.isdecimal()]
        if opened and self._index < max(opened):
            raise RefusalError(f"round {self._index} was asked for after round {max(opened)}, and no round comes twice")
        if self._index in opened and self._theta and self._name_of_theta not in self._memory:
            raise RefusalError(f"round {self._index} was opened before, for another adapter")

    def check(self, survivors: list[str]) -> None:
        """Refuse to open a sum whose difference to one that was opened would be that of single clients.

        Raises:
            RefusalError: the round, or the same θ in another round, was opened for other survivors.
        """
        for name, what in ((self._name, f"round {self._index}"), (self._name_of_theta, "the same adapter")):
            before = self._memory.get(name, survivors)
            if before != survivors:
                only = ", ".join(before)
                raise RefusalError(f"{what} was opened before, for other survivors (only {only} may take part)")

    def note(self, survivors: list[str]) -> None:
        """Remember for whom the sum is opened, before any share leaves."""
        if self._theta and self._name_of_theta not in self._memory:
            self._memory[self._name_of_theta] = survivors
        self._memory[self._name] = survivors

    @property
    def _name(self) -> str:
        return f"{self._run}/{self._index}"

    @property
    def _name_of_theta(self) -> str:
        return f"{self._run}/θ/{self._theta}"
