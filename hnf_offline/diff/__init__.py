"""Two runs through the same table: where they part, in what, and what cannot be compared."""

from __future__ import annotations

from hnf_offline.diff.runs import compare

__all__ = ["compare"]
