"""Co-tune a server's large model and its clients' small models without moving the clients' data."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedcollm.config import RunConfig
    from fedcollm.config.loading import load_config
    from fedcollm.errors import FedcollmError, NonFiniteError, UserError
    from fedcollm.experiments.comparison import Comparison, compare
    from fedcollm.runs.runner import RunResult, run

__version__ = "0.1.0"

_HOMES = {
    "Comparison": "experiments.comparison",
    "FedcollmError": "errors",
    "NonFiniteError": "errors",
    "RunConfig": "config",
    "RunResult": "runs.runner",
    "UserError": "errors",
    "compare": "experiments.comparison",
    "load_config": "config.loading",
    "run": "runs.runner",
}
__all__ = [
    "Comparison",
    "FedcollmError",
    "NonFiniteError",
    "RunConfig",
    "RunResult",
    "UserError",
    "compare",
    "load_config",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `fedcollm --help` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedcollm' has no attribute {name!r}")
    return getattr(import_module(f"fedcollm.{_HOMES[name]}"), name)
