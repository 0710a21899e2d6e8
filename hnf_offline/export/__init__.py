"""What `hnf report` wrote, into the trackers people already look at: quantities as scalars, alarms as text."""

from __future__ import annotations

from hnf_offline.export.writing import TARGETS, export

__all__ = ["TARGETS", "export"]
