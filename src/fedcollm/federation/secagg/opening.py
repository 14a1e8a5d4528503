"""What a server keeps on disk of a sum that it opens, so that its death leaves the round as it was.

Clients help to open a round for one list of survivors only. So the list is on disk before any of them is asked for
shares, and the sum before anything else is done with it. A server that died goes on with the same list, or the sum.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from fedcollm.errors import SpoiledRoundError, UserError
from fedcollm.storage import remove_leftovers, replacing, writing

#: How often a round is tried with the survivors of its first opening before the run goes on without it.
ATTEMPTS = 3


@dataclass(frozen=True)
class SecureSum:
    """The result of a session.

    Attributes:
        vector: Σ x_u mod 2³² over the survivors, [m] uint32.
        survivors: ids of the clients in the sum, sorted.
        lost: id of each lost client to the phase in which it was lost. A client that was lost in `confirm` or `unmask`
            is a survivor too, because its vector is in the sum.
        wrong: ids of the clients that sent wrong shares when the sum was opened.
        culprits: ids of the clients that have proven to be dishonest when they shared their secrets.
    """

    vector: np.ndarray
    survivors: tuple[str, ...]
    lost: Mapping[str, str]
    wrong: tuple[str, ...] = ()
    culprits: tuple[str, ...] = ()


@dataclass
class Opening:
    """One round's opening, in a file of its own.

    Attributes:
        payload: digest of what the clients of the round train, and of what all parties agreed on.
        round_index: index of the round.
        file: where it is kept; None to keep it in memory only.
        survivors: ids of the clients that were asked to open the sum; empty if none were.
        attempts: how many sessions have asked them.
        sum: the opened sum; None before that.
        bytes_moved: bytes that all clients sent and received in the session.
    """

    payload: str
    round_index: int = 0
    file: Path | None = None
    survivors: tuple[str, ...] = ()
    attempts: int = 0
    sum: SecureSum | None = None
    bytes_moved: tuple[int, int] = (0, 0)
    reasons: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def read(cls, file: Path | None, payload: str, round_index: int) -> "Opening":
        """Return what is known of a round; nothing if the file is missing, or of another round.

        Raises:
            UserError: the file can't be read.
            SpoiledRoundError: clients were asked to open the round, and by now they agree on something else, such as
                another roster. They open it no more.
        """
        if file is None or not file.is_file():
            return cls(payload, round_index, file)
        try:
            with cast(Any, safe_open)(file, framework="np") as stored:
                head = json.loads(stored.metadata()["opening"])
                words = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            if (head["payload"], head["round"]) == (payload, round_index):
                return cls._found(file, head, words)
            survivors: list[str] = head["survivors"] if head["round"] == round_index else []
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} can't be read: {error}. It holds the sum of a round that was opened. Restore it from a copy, "
                "or start again elsewhere."
            ) from error
        if survivors:
            raise SpoiledRoundError(
                f"round {round_index} was opened before by {', '.join(survivors)}, and the clients have agreed on "
                "something else since, such as another roster. The run goes on without this round."
            )
        return cls(payload, round_index, file)

    @classmethod
    def _found(cls, file: Path, head: Mapping[str, Any], words: Mapping[str, np.ndarray]) -> "Opening":
        """Return what is in the file, whose types the caller checks."""
        survivors, moved = tuple(head["survivors"]), tuple(head["bytes"])
        found = cls(head["payload"], head["round"], file, survivors, head["attempts"], None, moved, head["reasons"])
        if "sum" in words:
            wrong, culprits = tuple(head["wrong"]), tuple(head["culprits"])
            found.sum = SecureSum(words["sum"], survivors, head["lost"], wrong, culprits)
        return found

    def begin(self, survivors: Sequence[str]) -> None:
        """Note for whom the sum is about to be opened."""
        self.survivors, self.attempts = tuple(survivors), self.attempts + 1
        self._write({}, {"lost": {}, "wrong": []})

    def finish(self, result: SecureSum) -> None:
        """Note the opened sum."""
        self.sum = replace(result)
        found = {"lost": dict(result.lost), "wrong": list(result.wrong), "culprits": list(result.culprits)}
        self._write({"sum": result.vector}, found)

    def _write(self, tensors: dict[str, np.ndarray], head: dict[str, Any]) -> None:
        if self.file is None:
            return
        head |= {
            "payload": self.payload,
            "round": self.round_index,
            "survivors": self.survivors,
            "attempts": self.attempts,
        }
        head |= {"bytes": self.bytes_moved, "reasons": self.reasons}
        with writing(self.file.parent):
            remove_leftovers(self.file)
            with replacing(self.file) as temporary:
                cast(Any, safetensors.numpy).save_file(tensors, temporary, metadata={"opening": json.dumps(head)})
