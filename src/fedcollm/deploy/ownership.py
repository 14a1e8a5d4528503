"""Whether a client's directory is its owner's alone: what is in it decides what the client trusts and gives."""

import os
import stat
from pathlib import Path

from fedcollm.deploy import directories as names
from fedcollm.errors import UserError

_OTHERS_WRITE, _OTHERS_ENTER = stat.S_IWGRP | stat.S_IWOTH, stat.S_IXGRP | stat.S_IXOTH

_ROOT = 0


def check_directory(directory: Path) -> None:
    """Refuse a client's directory that others can change, or whose private keys they can read.

    Raises:
        UserError: says which file or directory, and what to do.
    """
    for name in (names.NODE_KEY, names.SIGNING_KEY):
        names.check_private(directory / name)
    check_owned(directory)


def check_owned(directory: Path) -> None:
    """Refuse a client's directory that others can change, or its files and its state, if others can enter it.

    Windows has access lists instead of permissions, which are not looked at.

    Raises:
        UserError: one of them can be changed by others, or belongs to another user than this one and root.
    """
    if os.name != "posix":
        return
    try:
        _check(directory.resolve())
    except OSError as error:
        raise UserError(f"{directory} can't be read: {error.strerror}. Give a directory of your own.") from error


def _check(place: Path, inner: bool = False) -> None:
    state = place.stat()
    if state.st_uid not in (os.geteuid(), _ROOT):
        raise UserError(
            f"{place} belongs to another user (number {state.st_uid}), who could change what this client has given. "
            "Join again, into a directory of your own."
        )
    if state.st_mode & _OTHERS_WRITE:
        raise UserError(
            f"{place} can be changed by others (mode {stat.S_IMODE(state.st_mode):o}), and with it what this client "
            f"has given. Run: chmod go-w {place}"
        )
    if stat.S_ISDIR(state.st_mode) and state.st_mode & _OTHERS_ENTER:
        for part in sorted(place.iterdir()):
            if inner or part.is_file() or part.name == "state":
                _check(part, inner=True)
