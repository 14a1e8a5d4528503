"""What a client must never lose: on its disk before memory knows of it, and before anything leaves the client."""

import errno
import json
import os
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fedcollm.errors import UserError
from fedcollm.storage import write_atomically, writing

T = TypeVar("T")

#: Files of a client's state: what it has given, and which sums it has helped to open.
SPENT, OPENED = "spent.json", "opened.json"


@dataclass
class Remembered(MutableMapping[str, T]):
    """A mapping that a client must never lose. Every value is on disk before the client acts on it.

    A value that can't be written is not remembered in memory either. So whoever asks again meets the same error, until
    the disk takes the value, and nothing is given that a restarted client would not know of.

    Attributes:
        file: the JSON file of the mapping. It is made at the first change.
    """

    file: Path

    def __post_init__(self) -> None:
        try:
            self._values: dict[str, T] = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
            if not isinstance(self._values, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ValueError("it holds no mapping")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.file} can't be read ({error}). It guards this client's data: restore it from a copy, or leave "
                "this run."
            ) from error

    def __getitem__(self, name: str) -> T:
        return self._values[name]

    def __setitem__(self, name: str, value: T) -> None:
        changed = {**self._values, name: value}
        with writing(self.file.parent):
            write_atomically(self.file, json.dumps(changed), mode=0o600)
            _flush(self.file.parent)
        self._values = json.loads(json.dumps(changed))  # as a restarted client reads it, whoever changes `value` later

    def __delitem__(self, name: str) -> None:
        raise TypeError("what is remembered is never forgotten")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def carry_over(old: Path, new: Path) -> None:
    """Copy what a client remembers from the state of its old directory to that of a new one.

    Raises:
        UserError: it is damaged, or can't be written.
    """
    for name in (SPENT, OPENED):
        if (old / name).exists():
            memory: Remembered[object] = Remembered(new / name)
            memory.update(Remembered[object](old / name))


def _flush(directory: Path) -> None:
    """Write a directory's list of files to the disk, without which a power failure could bring back the old file.

    Raises:
        OSError: the disk refuses.
    """
    if os.name != "posix":  # Windows can't open a directory, and writes its list of files in order
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know no such thing
            raise
    finally:
        os.close(descriptor)
