"""Check that the parts of a run fit into the data that there is."""

from dataclasses import dataclass

from fedcollm.config import TaskConfig
from fedcollm.data.pool import Pool
from fedcollm.errors import UserError


@dataclass(frozen=True)
class _Need:
    """A number of examples that a run takes from one part of a pool.

    Attributes:
        key: the key of the configuration that says how many.
        size: its value.
        clients: how many times that many are taken.
    """

    key: str
    size: int
    clients: int = 1

    @property
    def total(self) -> int:
        """The number of examples."""
        return self.clients * self.size


def check_sizes(pool: Pool, removed: int, config: TaskConfig, clients: int) -> None:
    """Check that each part of a pool has enough examples for a run.

    Args:
        pool: the examples without duplicates.
        removed: the number of duplicates that were dropped, for messages.
        config: the sizes.
        clients: the number of clients K; 0 if their data is elsewhere.

    Raises:
        UserError: a part is too small. The message names sizes that would fit.
    """
    needs: dict[str, list[_Need]] = {"training": [], "public": [], "unlabelled": []}
    if clients:
        needs["training"].append(_Need("task.private_size", config.private_size, clients))
    public = "training" if pool.public is None else "public"
    needs[public].append(_Need("task.public_size", config.public_size))
    unlabelled = public if pool.unlabelled is None else "unlabelled"
    needs[unlabelled].append(_Need("task.unlabelled_size", config.unlabelled_size))
    if pool.test is None:
        needs["training"].append(_Need("task.test_size", config.test_size))
    for kind, part in (("training", pool.train), ("public", pool.public), ("unlabelled", pool.unlabelled)):
        if part is not None:
            _check_size(kind, len(part), needs[kind], removed, config.name)


def _check_size(kind: str, available: int, needs: list[_Need], removed: int, name: str) -> None:
    needed = sum(need.total for need in needs)
    if needed <= available:
        return
    duplicates = f" (after {removed} duplicates were dropped)" if removed else ""
    what = " + ".join(
        f"task.clients {need.clients} × {need.key} {need.size}"
        if need.key == "task.private_size"
        else f"{need.key} {need.size}"
        for need in needs
    )
    raise UserError(
        f"task {name}: {needed} {kind} examples are needed ({what}), but there are {available}{duplicates}. "
        f"Lower one of these keys{_fitting(available, needs)} or provide more data."
    )


def _fitting(available: int, needs: list[_Need]) -> str:
    """Return sizes that would fit, as part of a sentence; empty if the data is too small for any.

    No part gets more than it asked for, and those that can't get all that they asked for get equally many examples.
    """
    wanted = sorted((need for need in needs if need.size), key=lambda need: need.total)
    fitting: dict[str, int] = {}
    for index, need in enumerate(wanted):
        share = min(need.size, available // (len(wanted) - index) // need.clients)
        fitting[need.key] = share
        available -= share * need.clients
    if 0 in fitting.values():
        return ""
    return f" ({', '.join(f'{need.key}: {fitting[need.key]}' for need in needs if need.size)} would fit)"
