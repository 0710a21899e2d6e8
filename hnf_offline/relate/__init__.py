"""Relate: which rule announced which spike, how early, and whether that is more than chance. Never torch."""

from __future__ import annotations
