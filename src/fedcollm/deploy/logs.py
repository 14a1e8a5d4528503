"""The log of a server or a client: time, level and round of every line that is said on the screen, rotated."""

import contextlib
import json
import logging
from collections.abc import Generator
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from fedcollm.errors import FedcollmError
from fedcollm.messages import readable
from fedcollm.progress import LOGGER, current
from fedcollm.storage import append_to, make_directory, writing

_BYTES, _FILES = 10 * 2**20, 5


class _Rotated(RotatingFileHandler):
    """A log of at most five files of 10 MiB, which only its owner can read."""

    def _open(self) -> TextIOWrapper:
        return open(append_to(Path(self.baseFilename)), "a", encoding="utf-8")


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return a line such as `2026-01-31T12:00:00.000+00:00 INFO round 3: trained in 2.0 s`."""
        where = "-" if current.round is None else str(current.round)
        return f"{_time(record)} {record.levelname} round={where} {readable(record.getMessage())}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return a line of JSON with `time`, `level`, `round` and `message`."""
        values = {"time": _time(record), "level": record.levelname, "round": current.round}
        return json.dumps(values | {"message": readable(record.getMessage())})


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


@contextlib.contextmanager
def logged(directory: Path, as_json: bool = False) -> Generator[Path, None, None]:
    """Write what is said in the block to `logs/fedcollm.log`.

    Args:
        directory: the directory of a server or a client.
        as_json: whether each line is JSON.

    Yields:
        The log.

    Raises:
        UserError: the log can't be written.
    """
    file = directory / "logs" / "fedcollm.log"
    with writing(file.parent):
        make_directory(file.parent)
        handler = _Rotated(file, maxBytes=_BYTES, backupCount=_FILES - 1, encoding="utf-8")
    handler.setFormatter(_Json() if as_json else _Text())
    before = LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield file
    except FedcollmError as error:
        LOGGER.error("%s", error)
        raise
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before)
        handler.close()
