"""A training run spiked or died: what went wrong, where, how early it could have been known, and what to do.

The library and the command line share their verbs:

    run = hnf_offline.open_run("runs/gpt")
    profile = hnf_offline.profile_run(run, hnf_offline.ProfileSettings(), Path("reports/gpt"))
    findings = hnf_offline.find(run, profile.table)
    hnf_offline.write_report(findings, run.log.rows, profile.table, Path("reports/gpt"))

Names are imported when they are used, so that importing the package loads neither torch nor polars.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hnf_offline.diff import compare as compare
    from hnf_offline.profile import profile_run as profile_run
    from hnf_offline.profile.settings import ProfileSettings as ProfileSettings
    from hnf_offline.relate.whole import find as find
    from hnf_offline.report import write_report as write_report
    from hnf_offline.run import open_run as open_run

    __version__: str

_WHERE = {
    "open_run": "hnf_offline.run",
    "ProfileSettings": "hnf_offline.profile.settings",
    "profile_run": "hnf_offline.profile",
    "find": "hnf_offline.relate.whole",
    "write_report": "hnf_offline.report",
    "compare": "hnf_offline.diff",
}

__all__ = ["ProfileSettings", "__version__", "compare", "find", "open_run", "profile_run", "write_report"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("hnf_offline")
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
