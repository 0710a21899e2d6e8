"""Progress of a profile, counted where checkpoints are measured one after another or several at once."""

from __future__ import annotations

import time
from collections.abc import Callable

from hnf_offline.profile.finished import Finished, event, stability_ratio
from hnf_offline.profile.settings import Progress


class Teller:
    """Tells whoever listens what is done, and how long it took by the clock on the wall."""

    def __init__(self, on_progress: Callable[[Progress], None] | None, total: int, cached: int) -> None:
        self._on_progress = on_progress
        self._total = total
        self._cached = cached
        self._done = cached
        self._ratios: dict[int, float] = {}
        self._shares: dict[int, float] = {}
        self._began = time.perf_counter()

    def __call__(self, step: int, *, event: str = "", seconds: float = 0.0, part: str = "") -> None:
        """Tell something.

        Args:
            step: the checkpoint it is about.
            event: a sentence worth telling now.
            seconds: what it took.
            part: how far a checkpoint is that is not finished.
        """
        if self._on_progress is not None:
            share = sum(self._shares.values())
            self._on_progress(
                Progress(step, self._done, self._total, self._cached, seconds, event, part=part, share=share)
            )

    def finished(self, one: Finished) -> None:
        """Tell that a checkpoint is done.

        Where several are measured at once, what counts for the rest is the time between two that are done.
        """
        step, now = one.checkpoint.step, time.perf_counter()
        seconds, self._began = now - self._began, now
        self._done += 1
        self._shares.pop(step, None)
        self(step, event=event(one, self._ratios), seconds=seconds)
        ratio = stability_ratio(one.frame)
        if ratio is not None:
            self._ratios[step] = ratio

    def part(self, step: int, done: int, total: int, share: float) -> None:
        """Tell how far a checkpoint is that is not finished."""
        self._shares[step] = share
        part = f"layers {done} of {total}" if done else "whole model"  # which comes before any layer
        self(step, seconds=time.perf_counter() - self._began, part=part)
