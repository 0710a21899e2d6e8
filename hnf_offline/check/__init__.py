"""Is this series of checkpoints sound? One small file a check; what could not be looked at is told with the rest.

Public series are often wrong: files of another step, of another run, half copied. What is measured on them is
noise, and nothing in a curve says so.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hnf_offline.check.examine import cheap_checks, check_run
    from hnf_offline.check.planning import plan_check
    from hnf_offline.check.replay import log_shift, replayed_losses, with_rows

_HOMES = {
    "cheap_checks": "hnf_offline.check.examine",
    "check_run": "hnf_offline.check.examine",
    "plan_check": "hnf_offline.check.planning",
    "with_rows": "hnf_offline.check.replay",
    "log_shift": "hnf_offline.check.replay",
    "replayed_losses": "hnf_offline.check.replay",
}

__all__ = ["cheap_checks", "check_run", "log_shift", "plan_check", "replayed_losses", "with_rows"]


def __getattr__(name: str) -> Any:
    # Looked up on first use: importing the package loads neither torch nor numpy.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
