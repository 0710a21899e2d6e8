"""What the findings look like: panels as data, drawn as SVG for the page and as PNG. Computes nothing."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hnf_offline.report.comparison_page import comparison_summary, write_comparison
    from hnf_offline.report.faults import check_summary, fault_line, faults_counted, faults_table
    from hnf_offline.report.heat import heat_map
    from hnf_offline.report.log_text import log_summary
    from hnf_offline.report.log_writing import write_log_findings
    from hnf_offline.report.monitor import monitor_lines, spelled_remarks
    from hnf_offline.report.page import write_report
    from hnf_offline.report.retraining_page import write_retraining
    from hnf_offline.report.retraining_terminal import (
        policies_table,
        policy_explained,
        retraining_summary,
    )
    from hnf_offline.report.spike_story import explained
    from hnf_offline.report.terminal import spikes_table, summary

__all__ = [
    "check_summary",
    "comparison_summary",
    "explained",
    "fault_line",
    "faults_counted",
    "faults_table",
    "heat_map",
    "log_summary",
    "monitor_lines",
    "policies_table",
    "policy_explained",
    "retraining_summary",
    "spelled_remarks",
    "spikes_table",
    "summary",
    "write_comparison",
    "write_log_findings",
    "write_report",
    "write_retraining",
]

_HOME = {
    "check_summary": "faults",
    "comparison_summary": "comparison_page",
    "explained": "spike_story",
    "fault_line": "faults",
    "faults_counted": "faults",
    "faults_table": "faults",
    "heat_map": "heat",
    "log_summary": "log_text",
    "monitor_lines": "monitor",
    "policies_table": "retraining_terminal",
    "policy_explained": "retraining_terminal",
    "retraining_summary": "retraining_terminal",
    "spelled_remarks": "monitor",
    "spikes_table": "terminal",
    "summary": "terminal",
    "write_comparison": "comparison_page",
    "write_log_findings": "log_writing",
    "write_report": "page",
    "write_retraining": "retraining_page",
}


def __getattr__(name: str) -> Any:
    # Lazily, so that printing a summary does not import matplotlib.
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Verb(ModuleType):
    """This package, which is also the verb of its name: `hnf_offline.report(run)`."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        from hnf_offline.library import report

        return report(*arguments, **named)


sys.modules[__name__].__class__ = _Verb
