"""Which checkpoints the settings ask for."""

from __future__ import annotations

from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.run.records import Checkpoint, Run


def selected(run: Run, settings: ProfileSettings) -> tuple[Checkpoint, ...]:
    """Choose the checkpoints that the settings ask for.

    Returns:
        Every n-th checkpoint within the step range.
    """
    first = settings.first_step if settings.first_step is not None else -1
    last = settings.last_step if settings.last_step is not None else float("inf")
    return tuple(point for point in run.checkpoints if first <= point.step <= last)[:: settings.every]
