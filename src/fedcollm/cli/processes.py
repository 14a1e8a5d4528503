"""Commands under torchrun: one process does the command, and the others hold parts of the server's LLM."""

import contextlib
import os
from collections.abc import Generator

from fedcollm.errors import UserError
from fedcollm.launched import launched

#: The commands that several processes can share.
_SHARED = ("run",)


def refuse_several(command: str | None) -> None:
    """Refuse a command that several processes can't share; only the first process says so.

    Raises:
        UserError: torchrun started several processes.
        SystemExit: the same, in all other processes.
    """
    if command in _SHARED or launched() == 1:
        return
    if os.environ["RANK"] != "0":
        raise SystemExit(2)
    raise UserError(
        f"fedcollm {command} is for one process, and torchrun started {launched()}. Start it without torchrun; only "
        f"fedcollm {' and '.join(_SHARED)} can be shared by several processes."
    )


@contextlib.contextmanager
def shared() -> Generator[bool, None, None]:
    """Join the processes that torchrun started, if it did, and yield whether this one does the command."""
    if launched() == 1:
        yield True
        return
    from fedcollm.models.processes import together  # imports torch, which takes seconds
    from fedcollm.runs.followers import follow

    with together() as processes:
        if not processes.leads:
            follow(processes)
        yield processes.leads


def again(command: str) -> str:
    """Return the command line that starts a command as it was started now."""
    if launched() == 1:
        return f"fedcollm {command}"
    return f"torchrun --nproc-per-node {launched()} -m fedcollm {command}"
