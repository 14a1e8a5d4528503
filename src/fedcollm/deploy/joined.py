"""The runs that this user of this machine has joined, so that nobody joins one again with an empty memory.

What a client has given (`state/spent.json`, `state/opened.json`) stands in its directory. A second directory for the
same run would start at zero: the privacy budget, the statistics and the rounds could be asked for again, of the same
data. So a list of joined runs is kept per user, in `FEDCOLLM_STATE`, by default `~/.local/state/fedcollm`.
Another user, another machine and whoever deletes the list are not stopped.
"""

import contextlib
import json
from collections.abc import Generator
from pathlib import Path

from fedcollm.deploy import directories as names
from fedcollm.deploy.directories import Membership
from fedcollm.deploy.files import create, make_directory
from fedcollm.deploy.remembered import Remembered, carry_over
from fedcollm.errors import UserError
from fedcollm.storage import locked, one_at_a_time, user_directory, writing

#: What stands before a directory in the list until its client has its keys.
_BEGUN = "begun in "

#: File in a client's directory that says in which other directory the client goes on.
CONTINUED = "continued.json"
_PLACE = "the list of joined runs in {directory} can't be written: {error}. Set FEDCOLLM_STATE to another directory."


def state_directory() -> Path:
    """Return the directory of what fedcollm remembers of this user (`FEDCOLLM_STATE`).

    Raises:
        UserError: the variable is not set, and the user has no home directory.
    """
    return user_directory(
        "FEDCOLLM_STATE",
        ".local/state",
        "this user has no home directory, where the list of joined runs would be. Set the environment variable "
        "FEDCOLLM_STATE to a directory that is kept.",
    )


@contextlib.contextmanager
def joining(member: Membership, place: Path, before: Path | None) -> Generator[None, None, None]:
    """Let the block make a client's directory, and remember it; with `before`, take over that one's memory.

    Args:
        member: the client and the run.
        place: the directory that the block makes.
        before: the directory of the same client in the same run that this one continues; None for the first one.

    Raises:
        UserError: this user has joined the run as this client before, and `before` is not that directory or is in use.
    """
    with writing(state_directory(), _PLACE):
        make_directory(state_directory())
    file = state_directory() / "joined.json"
    with one_at_a_time(file, _PLACE):
        known: Remembered[str] = Remembered(file)
        name = f"{member.run}/{member.client}"
        last = known.get(name, "")
        if last.startswith(_BEGUN) and not (Path(last.removeprefix(_BEGUN)) / names.NODE_KEY).exists():
            last = ""  # that attempt ended before there were keys, so that nothing was given
        last = last.removeprefix(_BEGUN)
        if before is None:
            _refuse_again(member, last)
        elif last and before.resolve() != Path(last):
            raise UserError(
                f"--continue {before}: this user has joined run {member.run} as client {member.client} in {last}. Give "
                "that directory, which has the memory of what was given."
            )
        known[name] = f"{_BEGUN}{place.resolve()}"  # before there are keys that could be used
        try:
            with contextlib.nullcontext() if before is None else _continued(member, before, place):
                yield
        except BaseException:  # an interruption too
            if not (place / names.NODE_KEY).exists():
                known[name] = last
            raise
        known[name] = str(place.resolve())


def _refuse_again(member: Membership, place: str) -> None:
    if place:
        raise UserError(
            f"this user has joined run {member.run} as client {member.client} before, in {place}. A new directory "
            "would forget what this client has given: its privacy budget, its statistics and its rounds could be asked "
            f"for again. Use that directory; or, for new keys with that memory, give --continue {place}"
        )


@contextlib.contextmanager
def _continued(member: Membership, before: Path, place: Path) -> Generator[None, None, None]:
    """Let the block make a directory, and carry the memory of an older one over, which is not used any more.

    Raises:
        UserError: the older directory is of another client or run, is in use, or was continued elsewhere.
    """
    old = names.read(before, names.MEMBERSHIP, Membership)
    if (old.run, old.client) != (member.run, member.client):
        raise UserError(
            f"--continue {before}: this is client {old.client} of run {old.run}, and the invitation is for client "
            f"{member.client} of run {member.run}. Give the directory that was used before in this run."
        )
    refuse_continued(before)
    with writing(before):
        make_directory(before / "state")
    with locked(before / "state"):
        with writing(place):
            make_directory(place / "state")
        carry_over(before / "state", place / "state")
        create(before / CONTINUED, json.dumps(str(place.resolve())))  # before there are keys in the new directory
        try:
            yield
        except BaseException:
            if not (place / names.NODE_KEY).exists():
                (before / CONTINUED).unlink(missing_ok=True)
            raise


def refuse_continued(directory: Path) -> None:
    """Refuse a client's directory whose memory was carried over to another one.

    Raises:
        UserError: says where the client goes on.
    """
    if (directory / CONTINUED).exists():
        raise UserError(
            f"{directory} is not used any more: this client goes on in another directory, which {CONTINUED} names. "
            "Two directories would each give what may be given once."
        )
