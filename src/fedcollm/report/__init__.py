"""Reports: tables, plots and one self-contained HTML file, made from run directories."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedcollm.report.html import write_report
    from fedcollm.report.runs import find_runs
    from fedcollm.report.tables import Summary, summary

#: Exported name to the module that defines it, imported on first use so that no command waits for plotly in vain.
_HOMES = {"Summary": "tables", "find_runs": "runs", "summary": "tables", "write_report": "html"}
__all__ = ["Summary", "find_runs", "summary", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedcollm.report' has no attribute {name!r}")
    return getattr(import_module(f"fedcollm.report.{_HOMES[name]}"), name)
