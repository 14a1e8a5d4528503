"""The audit log of a client: one line for every message that left it."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fedcollm.federation.statistics import ROUND as STATISTICS
from fedcollm.progress import current
from fedcollm.storage import append_to, make_directory, writing
from fedcollm.transports.wire import Head, head

#: Phase of secure aggregation to what a client's answer is.
_ANSWERS = {
    "share": "shares",
    "mask": "masked vector",
    "reveal": "opened shares",
    "confirm": "signature",
    "unmask": "shares of secrets",
}


def kind_of(request: Head, answer: Head) -> str:
    """Return what an answer is, in a few words.

    Args:
        request: head of the request.
        answer: head of the answer.
    """
    if answer.kind == "update":
        return "statistics" if answer.round_index == STATISTICS else "update"
    if answer.kind != "answer":
        return answer.kind
    if request.kind == "train":
        return "keys"
    return "acknowledgement" if request.kind == "finish" else _ANSWERS.get(request.phase, "answer")


@dataclass
class Audited:
    """Answer requests, and write down what leaves before it leaves.

    A line of the log has the time in UTC, the round, the kind of message, the number of bytes, and the SHA-256 of the
    bytes. Lines are only ever appended.

    Attributes:
        answer: returns the bytes of the answer to the bytes of a request.
        file: the log, in JSON lines.
    """

    answer: Callable[[bytes], bytes] = field(repr=False)
    file: Path

    def __call__(self, data: bytes) -> bytes:
        """Return the answer to a request, once its line is on disk.

        Raises:
            UserError: the log can't be written. The answer does not leave then.
        """
        content = self.answer(data)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "round": current.round,
            "kind": kind_of(head(data), head(content)),
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        with writing(self.file.parent, "the audit log in {directory} can't be written: {error}. Nothing is sent."):
            make_directory(self.file.parent)
            descriptor = append_to(self.file)
            try:
                os.write(descriptor, json.dumps(line).encode() + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        return content


def totals(file: Path) -> tuple[int, int]:
    """Return the number of messages that left, and their bytes, by an audit log."""
    if not file.is_file():
        return 0, 0
    sizes = [int(json.loads(line)["bytes"]) for line in file.read_text(encoding="utf-8").splitlines()]
    return len(sizes), sum(sizes)
