"""Fit a run or a client into a memory limit, without changing what it computes.

Batches are computed in parts, whose gradients add up to that of the whole batch, and layers are computed again in the
backward pass if that is not enough.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.errors import UserError

#: Resident memory of the imported libraries, with oneDNN's compiled products: measured 415 to 450 MB.
LIBRARY_BYTES = 450_000_000


def fit_memory(
    config: RunConfig, needed: Callable[[RunConfig], int], limit_bytes: int, roles: Collection[str] = ("slm", "llm")
) -> dict[str, Any]:
    """Return the changes to a configuration with which it fits into a limit, the fastest ones that do.

    Args:
        config: the run's configuration.
        needed: returns the estimated memory of a configuration in bytes, without that of libraries.
        limit_bytes: what the process may take.
        roles: the models in the process: a client has the SLM alone.

    Returns:
        Dotted key to its new value; nothing if the configuration fits as it is.

    Raises:
        UserError: not even one example at a time fits.
    """
    least = 0
    for changes in _ways(config, roles):
        least = LIBRARY_BYTES + needed(changed(config, changes))
        if least <= limit_bytes:
            return changes
    raise UserError(
        f"--memory-limit {limit_bytes / 1e6:.0f}MB: at least {least / 1e6:.0f}MB are needed, with one example at a "
        f"time ({LIBRARY_BYTES / 1e6:.0f} MB of it for libraries). Raise the limit, choose a smaller model or fewer "
        "layers, or set dtype: bfloat16 if the models are in float32."
    )


def limit_in_words(limited: Mapping[str, Any]) -> str:
    """Return a limit and what was changed for it as a sentence.

    >>> limit_in_words({"limit_bytes": 700000000, "estimated_bytes": 650000000, "client.micro_batch_size": 4})
    'memory limit 700 MB: about 650 MB with libraries, given client.micro_batch_size: 4'
    """
    values = dict(limited)
    limit, estimated = values.pop("limit_bytes"), values.pop("estimated_bytes")
    changes = ", ".join(f"{key}: {value}" for key, value in values.items()) or "no change"
    return f"memory limit {limit / 1e6:.0f} MB: about {estimated / 1e6:.0f} MB with libraries, given {changes}"


def _ways(config: RunConfig, roles: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield changes that take less and less memory: first smaller parts of a batch, then layers computed again."""
    sections = {"slm": config.slm, "llm": config.llm}
    if not config.server.epochs or "llm" not in roles:
        sections.pop("llm")
    loops = {} if config.client.loss_trim else {"client": config.client.at_once}  # trimming needs whole batches
    loops |= {"server": config.server.at_once} if "llm" in sections else {}
    recomputed = {f"{r}.gradient_checkpointing": True for r, one in sections.items() if not one.gradient_checkpointing}
    private = config.federation.privacy
    if not config.task.is_text or (private is not None and private.level == "example"):
        recomputed = {}
    for further in ({}, recomputed) if recomputed else ({},):
        for divisor in _powers_of_two(max([*loops.values(), config.evaluation.batch_size])):
            parts = {f"{name}.micro_batch_size": -(-size // divisor) for name, size in loops.items()}
            parts["evaluation.batch_size"] = -(-config.evaluation.batch_size // divisor)
            yield {**(parts if divisor > 1 else {}), **further}


def _powers_of_two(largest: int) -> Iterator[int]:
    """Yield 1, 2, 4, ..., until the largest number was divided down to 1.

    >>> list(_powers_of_two(5)), list(_powers_of_two(1))
    ([1, 2, 4, 8], [1])
    """
    divisor = 1
    yield divisor
    while divisor < largest:
        divisor *= 2
        yield divisor
