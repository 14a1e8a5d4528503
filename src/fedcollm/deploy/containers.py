"""What a container of a server or a client must see of the machine that it runs on."""

import json
from pathlib import Path

from fedcollm.config import RunConfig


def mounts(config: RunConfig, server: bool) -> str:
    """Return the volumes of a compose file for the models and the data that a configuration names by absolute paths.

    Each is mounted where it is, so that the configuration holds in the container too, and can't be written there.

    Args:
        config: the run's configuration.
        server: whether the container is the server, which has the LLM and D_a too.
    """
    named = [config.slm.source, *((config.llm.source, config.task.path) if server else ())]
    places = dict.fromkeys(str(place) for place in named if place and Path(place).is_absolute())
    volumes = [{"type": "bind", "source": place, "target": place, "read_only": True} for place in places]
    return "".join(f"\n      - {json.dumps(volume).replace('$', '$$')}" for volume in volumes)
