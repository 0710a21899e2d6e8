"""The tier `full`: every layer as a map from its input to its output, and what reduced precision does to it."""

from __future__ import annotations

from hnf_offline.profile.maps.casting import precision_rows
from hnf_offline.profile.maps.measure import map_rows

__all__ = ["map_rows", "precision_rows"]
