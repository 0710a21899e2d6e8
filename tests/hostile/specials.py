"""Hostile runs made by hand: bombs of a few bytes, lies that fit together, and the traps known by name."""

from __future__ import annotations

from . import by_hand, hand_arrays, hand_json, hand_logs, hand_pickles, hand_runs
from .by_hand import FIRST, case, names, numbers

#: Importing them registers what they hold.
PARTS = (hand_json, hand_arrays, hand_logs, hand_runs, hand_pickles)

__all__ = ["FIRST", "PARTS", "by_hand", "case", "names", "numbers"]
