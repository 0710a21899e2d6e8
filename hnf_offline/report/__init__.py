"""What the findings look like: panels as data, drawn as SVG for the page and as PNG. Computes nothing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hnf_offline.report.comparison_page import comparison_summary, write_comparison
    from hnf_offline.report.heat import heat_map
    from hnf_offline.report.monitor import monitor_lines
    from hnf_offline.report.page import write_report
    from hnf_offline.report.retraining_page import write_retraining
    from hnf_offline.report.retraining_terminal import (
        policies_table,
        policy_explained,
        retraining_summary,
    )
    from hnf_offline.report.terminal import spikes_table, summary

__all__ = [
    "comparison_summary",
    "heat_map",
    "monitor_lines",
    "policies_table",
    "policy_explained",
    "retraining_summary",
    "spikes_table",
    "summary",
    "write_comparison",
    "write_report",
    "write_retraining",
]

_HOME = {
    "comparison_summary": "comparison_page",
    "heat_map": "heat",
    "monitor_lines": "monitor",
    "policies_table": "retraining_terminal",
    "policy_explained": "retraining_terminal",
    "retraining_summary": "retraining_terminal",
    "spikes_table": "terminal",
    "summary": "terminal",
    "write_comparison": "comparison_page",
    "write_report": "page",
    "write_retraining": "retraining_page",
}


def __getattr__(name: str) -> Any:
    # Lazily, so that printing a summary does not import matplotlib.
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
