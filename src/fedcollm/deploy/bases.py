"""Whether a client's SLM is the operator's, bit for bit: an adapter means nothing on another base.

The digests are those of the files, so they do not depend on the dtype in which a party computes.
"""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import constants as hub_constants
from huggingface_hub import try_to_load_from_cache

from fedcollm.config import RunConfig
from fedcollm.errors import UserError, in_section
from fedcollm.models.pretrained import base_directory, load_config
from fedcollm.runs.build_models import NETWORKS
from fedcollm.runs.identity import stored_digests


def slm_digests(config: RunConfig) -> dict[str, str]:
    """Return the digests of the SLM's configuration and weights, by name.

    There are none for a network that ships without weights, since these follow from the run's seed, and none for a
    control that needs no model.

    Raises:
        UserError: the SLM's source does not exist, or a file can't be read.
    """
    source = config.slm.source
    if source in NETWORKS or not _needs_model(config):
        return {}
    with in_section("slm"):
        return stored_digests(_place(source))


def _needs_model(config: RunConfig) -> bool:
    return config.control is None or config.control.needs_model


def _place(source: str) -> Path:
    """Return the directory of a source, which is within the hub's cache if the source is a hub id."""
    place = Path(base_directory(source, None))
    if place.is_dir():
        return place
    load_config(source)  # fetches it, if it is not in the cache
    found = try_to_load_from_cache(source, "config.json", cache_dir=hub_constants.HF_HUB_CACHE)
    return Path(found).parent if isinstance(found, str) else place


def check_slm(config: RunConfig, wanted: Mapping[str, str]) -> None:
    """Check that the SLM is the one that the deployment was made with.

    Args:
        config: the client's configuration.
        wanted: the digests in its membership.

    Raises:
        UserError: it is another one.
    """
    if not (wanted and _needs_model(config)):
        return
    found = slm_digests(config)
    other = [name for name, digest in wanted.items() if found.get(name) != digest]
    if other:
        pairs = ", ".join(f"{name}: {found.get(name, 'none')[:16]} here, {wanted[name][:16]} there" for name in other)
        raise UserError(
            f"slm.source: {config.slm.source} is not the SLM that the operator has, so no adapter of this run would "
            f"fit it (SHA-256 of the {pairs}). Copy the operator's directory, and name it as slm.source in config.yaml."
        )
