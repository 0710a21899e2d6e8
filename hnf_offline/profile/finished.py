"""A checkpoint that is done, in this process or another one, and what is worth telling of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from hnf_offline.run.records import Checkpoint


@dataclass(frozen=True, slots=True)
class Finished:
    """A checkpoint that was measured, or passed over.

    Attributes:
        checkpoint: which one.
        frame: its rows, None where it could not be measured.
        skipped: (file, reason, remedy) of what was left out at it.
        forwards: forward passes of all replayed rows that it was worth.
        peak_bytes: memory at the peak, weights included.
    """

    checkpoint: Checkpoint
    frame: pl.DataFrame | None
    skipped: tuple[tuple[Path, str, str], ...] = ()
    forwards: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """How far a checkpoint is that another process measures; see `parts.OnPart` for what the fields are."""

    step: int
    done: int
    total: int
    share: float


@dataclass(frozen=True, slots=True)
class Lost:
    """A process that came to an end before its work did.

    Attributes:
        device: what it worked on.
        reason: what happened to it.
        checkpoints: what it leaves unmeasured.
    """

    device: str
    reason: str
    checkpoints: tuple[Checkpoint, ...]

    @property
    def event(self) -> str:
        """The sentence for the user."""
        count = len(self.checkpoints)
        left = f"{count} checkpoint{'' if count == 1 else 's'}"
        return f"{self.device}: {self.reason}; {left} left for another run"

    @property
    def skipped(self) -> tuple[tuple[Path, str, str], ...]:
        """What it leaves unmeasured, told as what was passed over."""
        reason = f"was not measured: {self.device}: {self.reason}"
        return tuple(
            (point.path, reason, "run again to measure what is missing") for point in self.checkpoints
        )


def stability_ratio(frame: pl.DataFrame | None) -> float | None:
    """Give S of the whole model.

    Returns:
        None where it was not measured.
    """
    if frame is None:
        return None
    whole = frame.filter(pl.col("quantity") == "hessian.stability_ratio", pl.col("layer") == "")["value"]
    return float(whole[0]) if len(whole) else None


def event(finished: Finished, ratios: Mapping[int, float]) -> str:
    """Tell what happened at a checkpoint; a run that stays beyond the edge is told once.

    Args:
        finished: the checkpoint.
        ratios: step -> S of checkpoints that are done; several processes finish them in any order.

    Returns:
        A sentence, "" where nothing is worth one.
    """
    frame, step = finished.frame, finished.checkpoint.step
    if frame is None:
        return ""
    share = frame.filter(pl.col("quantity") == "weight.nonfinite", pl.col("layer") == "")["value"]
    if len(share) and share[0] > 0:
        return f"step {step}: {share[0]:.2%} of the weights are not finite"
    now = stability_ratio(frame)
    before = ratios[max(earlier)] if (earlier := [one for one in ratios if one < step]) else None
    if now is not None and now >= 1 and (before is None or before < 1):
        return f"step {step}: S = {now:.2f}, beyond the edge of stability"
    return ""
