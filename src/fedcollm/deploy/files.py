"""Files of a deployment: written for one owner, and read from strangers within bounds.

Directories of a deployment may be on a machine that several people use. So every mode is explicit, no symbolic link is
followed where something is written (see also `storage`), and what another party sent is read only up to a limit.
"""

import os
import stat
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from fedcollm.errors import UserError
from fedcollm.storage import make_directory

#: `os.O_NOFOLLOW` and `os.O_NONBLOCK`, which Windows lacks.
_NO_LINK, _NO_WAIT = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)


def create(file: Path, content: str | bytes, secret: bool = False) -> None:
    """Write a new file. Only its owner can read a secret, or enter a directory that is made here.

    Raises:
        UserError: the file exists already, or can't be written.
    """
    mode = 0o600 if secret else 0o644
    try:
        make_directory(file.parent)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content if isinstance(content, bytes) else content.encode())
        file.chmod(mode)  # whatever the umask is
    except OSError as error:
        raise UserError(f"{file} can't be written: {error.strerror}. Choose another --out.") from error


def read_bounded(file: Path, limit_bytes: int) -> bytes:
    """Return the content of a file that another party wrote.

    Args:
        file: the file. A symbolic link, a device or a pipe is refused.
        limit_bytes: size of the longest file to accept.

    Raises:
        UserError: the file can't be read, is no ordinary file, or is too long.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | _NO_LINK | _NO_WAIT | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError(f"{file} is no ordinary file. Give the file itself.")
            content = stream.read(limit_bytes + 1)
    except OSError as error:
        reason = "it is a symbolic link" if file.is_symlink() else error.strerror
        raise UserError(f"{file} can't be read ({reason}). Give the file itself.") from error
    if len(content) > limit_bytes:
        raise UserError(f"{file} is longer than {limit_bytes} bytes, and no such file is. Ask for it again.")
    return content


def filled(name: str, facts: Mapping[str, Any]) -> str:
    """Return the template with this name, its placeholders replaced by these values."""
    return Template((files("fedcollm.deploy") / "templates" / name).read_text(encoding="utf-8")).substitute(facts)


def unit_words(**paths: Path) -> dict[str, str]:
    r"""Return paths as a systemd unit writes them, where %, quotes, \\ and (in commands) $ have a meaning.

    Returns:
        For each name: `NAME` is a quoted word of a command, `NAME_inner` is part of a quoted word elsewhere, and
        `NAME_plain` a path without quotes.

    Raises:
        UserError: a path has control characters.

    >>> unit_words(home=Path("/srv/my 100% $data"))
    {'home': '"/srv/my 100%% $$data"', 'home_inner': '/srv/my 100%% $data', 'home_plain': '/srv/my 100%% $data'}
    """
    words: dict[str, str] = {}
    for name, path in paths.items():
        if not str(path).isprintable():
            raise UserError(
                f"{str(path)!r}: a path with control characters can't stand in a unit. Choose another --out."
            )
        plain = str(path).replace("%", "%%")
        inner = plain.replace("\\", "\\\\").replace('"', '\\"')
        words |= {name: '"' + inner.replace("$", "$$") + '"', f"{name}_inner": inner, f"{name}_plain": plain}
    return words
