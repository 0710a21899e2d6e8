"""Spikes beside alarms: how early, more than chance, where, why, and what to do. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hnf_offline.relate.whole import find as find

__all__ = ["find"]


def __getattr__(name: str) -> Any:
    if name == "find":
        from hnf_offline.relate.whole import find

        return find
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
