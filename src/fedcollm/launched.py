"""How many processes were started together, known before torch is imported, which takes seconds."""

import os


def launched() -> int:
    """Return the number of processes that torchrun started together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
