"""Reports: tables, plots and one self-contained HTML file, made from run directories."""

from fedcollm.report.html import write_report
from fedcollm.report.runs import find_runs
from fedcollm.report.tables import Summary, summary

__all__ = ["Summary", "find_runs", "summary", "write_report"]
