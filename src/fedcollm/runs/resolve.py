"""Fill in what a configuration leaves open: where relative paths are, and how many clients a natural partition has."""

from fedcollm.config import RunConfig
from fedcollm.config.loading import load_config
from fedcollm.config.paths import with_absolute_paths
from fedcollm.data.catalogue import load_pool
from fedcollm.data.partition import split
from fedcollm.data.pool import Pool


def resolved(config: RunConfig, pool: Pool | None = None) -> tuple[RunConfig, Pool | None]:
    """Return a configuration with absolute paths and a number of clients, and the data if it had to be loaded for it.

    Args:
        config: the configuration of a run.
        pool: the user's own data; by default the data of the task.

    Raises:
        UserError: the data is not usable, or the configuration does not allow that number of clients.
    """
    config = with_absolute_paths(config)
    if config.task.clients is not None:
        return config, pool
    pool = pool or load_pool(config.task, config.seed)
    return with_number(config, len(split(pool, config.task, config.seed).private)), pool


def with_number(config: RunConfig, clients: int) -> RunConfig:
    """Return a configuration with this number of clients.

    Raises:
        UserError: the configuration does not allow it.
    """
    return load_config(config.model_dump(), **{"task.clients": clients})
