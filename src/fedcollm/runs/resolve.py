"""Fill in what a configuration leaves open: absolute paths, the clients of a natural partition, augmentations."""

from fedcollm.config import RunConfig
from fedcollm.config.augmentation import defaults
from fedcollm.config.baselines import changed
from fedcollm.config.loading import load_config
from fedcollm.config.paths import with_absolute_paths
from fedcollm.data.catalogue import load_pool
from fedcollm.data.partition import split
from fedcollm.data.pool import Pool


def resolved(config: RunConfig, pool: Pool | None = None) -> tuple[RunConfig, Pool | None]:
    """Return a configuration that leaves nothing open, and the data if it had to be loaded for it.

    It has absolute paths, a number of clients, and names for its augmentations.

    Args:
        config: the configuration of a run.
        pool: the user's own data; by default the data of the task.

    Raises:
        UserError: the data is not usable, or the configuration does not allow that number of clients.
    """
    config = with_augmentation(with_absolute_paths(config))
    if config.task.clients is not None:
        return config, pool
    pool = pool or load_pool(config.task, config.seed)
    return with_number(config, len(split(pool, config.task, config.seed).private)), pool


def with_augmentation(config: RunConfig) -> RunConfig:
    """Return a configuration whose augmentations, if any, are named."""
    if config.client.augmentation is None or config.client.augmentation.kinds is not None:
        return config
    return changed(config, {"client.augmentation.kinds": defaults(config.task)})


def with_number(config: RunConfig, clients: int) -> RunConfig:
    """Return a configuration with this number of clients.

    Raises:
        UserError: the configuration does not allow it.
    """
    return load_config(config.model_dump(), **{"task.clients": clients})
