"""Replay: batches through every checkpoint, into the long table. Torch is imported when it is used."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hnf_offline.profile.planning import plan as plan
    from hnf_offline.profile.run import Profile as Profile
    from hnf_offline.profile.run import profile_run as profile_run
    from hnf_offline.profile.settings import ProfileSettings as ProfileSettings

_HOMES = {
    "Profile": "hnf_offline.profile.run",
    "plan": "hnf_offline.profile.planning",
    "profile_run": "hnf_offline.profile.run",
    "ProfileSettings": "hnf_offline.profile.settings",
}

__all__ = ["Profile", "ProfileSettings", "plan", "profile_run"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Verb(ModuleType):
    """This package, which is also the verb of its name: `hnf_offline.profile(run)`."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        from hnf_offline.library import profile

        return profile(*arguments, **named)


sys.modules[__name__].__class__ = _Verb
