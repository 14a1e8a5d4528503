"""The statistics that a client has sent in a run: it sends these again, and never others.

The difference of two clients' sums shows which examples came in or went out between them. A refusal would tell the
server that some did. So what was sent once is kept at the client, and is the answer for the whole run.
"""

import base64
from collections.abc import MutableMapping
from typing import Any, cast

import safetensors.torch

from fedcollm.errors import UserError
from fedcollm.messages import Adapter, payload_digest

#: Longest statistics that are kept to be sent again, in bytes: those of 2,048 columns are 9 MB.
_LONGEST_BYTES = 2**24


class SentStatistics:
    """What a client has sent of its examples in a run.

    Args:
        memory: keeps `statistics/RUN`, a digest of the statistics, and `sent/RUN`, the statistics themselves unless
            they are longer than 16 MiB. Both are written before any part of them can leave.
        run: name of the run.
    """

    def __init__(self, memory: MutableMapping[str, Any], run: str):
        self._memory, self._digest, self._sent = memory, f"statistics/{run}", f"sent/{run}"

    def settle(self, adapter: Adapter, examples: int) -> tuple[Adapter, int]:
        """Return the statistics that the client sends: its own at the first time, and from then on the same ones.

        Args:
            adapter: the statistics of the examples that the client has now.
            examples: the number of these examples.

        Returns:
            The statistics, and the number of examples that they are of.

        Raises:
            UserError: other statistics were sent, and are not kept. It is no `RefusalError`, so that the server learns
                no more than that the client can't answer.
        """
        if self._digest not in self._memory:
            self._note(adapter, examples)
        if self._memory[self._digest] == _digest(adapter, examples):
            return adapter, examples
        try:
            count, _, text = str(self._memory.get(self._sent, "")).partition(" ")
            kept: Adapter = cast(Any, safetensors.torch).load(base64.b64decode(text))
            if self._memory[self._digest] == _digest(kept, int(count)):
                return kept, int(count)
        except (ValueError, safetensors.SafetensorError):
            pass
        raise UserError(
            "this client has sent other statistics in this run, which are not kept here, and the difference would show "
            "which examples were added, removed or changed. Give the client the examples and the SLM that it had, or "
            "start a new run."
        )

    def _note(self, adapter: Adapter, examples: int) -> None:
        data = cast(Any, safetensors.torch).save(adapter)
        if len(data) <= _LONGEST_BYTES:
            self._memory[self._sent] = f"{examples} {base64.b64encode(data).decode()}"
        self._memory[self._digest] = _digest(adapter, examples)


def _digest(adapter: Adapter, examples: int) -> str:
    return payload_digest(adapter, {"examples": examples})
