"""Directories of networks that ship with fedcollm without weights, once a run has pretrained them.

Such a directory says which network it is, and is a source like any other: it can be copied to the clients of a
deployment, which must not pretrain a base of their own.
"""

import json
import os
from pathlib import Path
from typing import Any, cast

from fedcollm.errors import UserError
from fedcollm.storage import write_atomically

#: The file that says which network a directory is.
NETWORK = "network.json"

#: Weights of a network that has no format of its own, such as that of transformers.
WEIGHTS = "weights.safetensors"


def network_name(source: str) -> str:
    """Return the name of the shipped network that a directory was pretrained from; any other source as it is.

    Raises:
        UserError: the directory's file that says so is damaged.
    """
    file = os.path.join(source, NETWORK)
    if not os.path.isfile(file):  # unlike a Path's method, it takes any text
        return source
    try:
        found: Any = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    name = cast("dict[str, Any]", found).get("network") if isinstance(found, dict) else None
    if not isinstance(name, str):
        raise UserError(f"{file} does not say which network it is. Restore the directory from a copy.")
    return name


def write_network_name(directory: Path, name: str) -> None:
    """Write into a directory which shipped network it is."""
    write_atomically(directory / NETWORK, json.dumps({"network": name}) + "\n", mode=0o644)
