"""A training run spiked or died: what went wrong, where, how early it could have been known, and what to do.

The library and the command line share their verbs:

    import hnf_offline as hnf

    run = hnf.open_run("runs/gpt")
    profile = hnf.profile(run)                        # profile.table is a polars DataFrame
    report = hnf.report(run)                          # the same measurements, and what they mean
    report.spikes, report.alarms, report.figures()    # tables and matplotlib figures
    report.save()                                     # the page of `hnf report`

Names are imported when they are used, so that importing the package loads neither torch nor polars.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hnf_offline import profile as profile
    from hnf_offline import report as report
    from hnf_offline.diff import compare as compare
    from hnf_offline.profile import profile_run as profile_run
    from hnf_offline.profile.settings import ProfileSettings as ProfileSettings
    from hnf_offline.relate.whole import find as find
    from hnf_offline.report import write_report as write_report
    from hnf_offline.run import open_run as open_run

    __version__: str

#: Packages that are also verbs: `hnf_offline.profile(run)`, `hnf_offline.report(run)`.
_VERBS = ("profile", "report")
_WHERE = {
    "open_run": "hnf_offline.run",
    "ProfileSettings": "hnf_offline.profile.settings",
    "profile_run": "hnf_offline.profile",
    "find": "hnf_offline.relate.whole",
    "write_report": "hnf_offline.report",
    "compare": "hnf_offline.diff",
}

__all__ = [
    "ProfileSettings",
    "__version__",
    "compare",
    "find",
    "open_run",
    "profile",
    "profile_run",
    "report",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("hnf_offline")
    if name in _VERBS:
        return import_module(f"hnf_offline.{name}")
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
