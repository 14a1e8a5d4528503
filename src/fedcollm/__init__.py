"""Co-tune a server's large model and its clients' small models without moving the clients' data."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedcollm.config import RunConfig
    from fedcollm.config.loading import load_config
    from fedcollm.data.pool import Pool
    from fedcollm.errors import FedcollmError, NonFiniteError, UserError
    from fedcollm.experiments.comparison import Comparison, compare
    from fedcollm.exports.export import Exported, ExportOptions, export
    from fedcollm.messages import RoundRecord, Score
    from fedcollm.metrics import Step, listening
    from fedcollm.modalities.base import Example, Modality, Rows
    from fedcollm.modalities.predictions import Prediction
    from fedcollm.runs.build import Inputs
    from fedcollm.runs.predictor import Predictor
    from fedcollm.runs.runner import RunResult, run

__version__ = "0.1.0"

#: Exported name to the module that defines it, imported on first use so that `fedcollm --help` does not wait for torch.
_HOMES = {
    "Comparison": "experiments.comparison",
    "Example": "modalities.base",
    "ExportOptions": "exports.export",
    "Exported": "exports.export",
    "FedcollmError": "errors",
    "Inputs": "runs.build",
    "Modality": "modalities.base",
    "NonFiniteError": "errors",
    "Pool": "data.pool",
    "Prediction": "modalities.predictions",
    "Predictor": "runs.predictor",
    "RoundRecord": "messages",
    "Rows": "modalities.base",
    "RunConfig": "config",
    "RunResult": "runs.runner",
    "Score": "messages",
    "Step": "metrics",
    "UserError": "errors",
    "compare": "experiments.comparison",
    "export": "exports.export",
    "listening": "metrics",
    "load_config": "config.loading",
    "run": "runs.runner",
}
__all__ = [
    "Comparison",
    "Example",
    "ExportOptions",
    "Exported",
    "FedcollmError",
    "Inputs",
    "Modality",
    "NonFiniteError",
    "Pool",
    "Prediction",
    "Predictor",
    "RoundRecord",
    "Rows",
    "RunConfig",
    "RunResult",
    "Score",
    "Step",
    "UserError",
    "compare",
    "export",
    "listening",
    "load_config",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedcollm' has no attribute {name!r}")
    return getattr(import_module(f"fedcollm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
