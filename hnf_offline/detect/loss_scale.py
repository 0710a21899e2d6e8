"""Mixed precision in trouble: a loss scale that collapses, updates that are skipped again and again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from hnf_offline.detect.measured import logged
from hnf_offline.detect.trailing import Floats
from hnf_offline.findings import LogEvent

FLOOR = 1.0  # below it gradients are made smaller, which no working run needs
ONCE = 128.0  # a scale at the floor is a collapse only if it was this high before
SKIPPED_SHARE, SKIPPED_LEAST = 0.05, 5
BURST_ROWS, BURST_SHARE = 20, 0.25


def collapse(log: pl.DataFrame) -> Iterator[LogEvent]:
    """A loss scale below 1, or down to 1 after it had been 128 or more.

    The scale is halved at every overflow and raised after thousands of steps without one, so it reaches 1 only
    when update after update overflows: the run is dead or dying.

    Yields:
        Kind "loss-scale-collapse", at most one.
    """
    steps, scale = logged(log, "loss_scale")
    keep = np.isfinite(scale)
    steps, scale = steps[keep], scale[keep]
    if not scale.size:
        return
    highest = np.maximum.accumulate(scale)
    low = (scale < FLOOR) | ((scale <= FLOOR) & (highest >= ONCE))
    for row in np.flatnonzero(low)[:1]:
        bottom = row + int(np.argmin(scale[row:]))
        evidence = f"loss scale fell to {scale[row]:g} at step {steps[row]}"
        if highest[row] > scale[row]:
            evidence = f"loss scale fell from {highest[row]:g} to {scale[row]:g} at step {steps[row]}"
        if scale[bottom] < scale[row]:
            evidence += f" and to {scale[bottom]:g} at step {steps[bottom]}"
        recovered = np.flatnonzero(~low[row:])
        stayed = recovered.size == 0
        evidence += (
            "; it stayed down." if stayed else f"; it was higher again at step {steps[row + recovered[0]]}."
        )
        last = int(steps[-1] if stayed else steps[row + recovered[0]])
        yield LogEvent("loss-scale-collapse", "danger", int(steps[row]), last, evidence)


def skipped_steps(log: pl.DataFrame) -> Iterator[LogEvent]:
    """Updates skipped because gradients overflowed, apart from the search for a scale at the very start.

    Counted by the log itself where it does, else by the halvings of the loss scale. A warning where they are
    5 % of the steps after the start, or a quarter of the steps of twenty rows, and at least five.

    Yields:
        Kind "skipped-steps", one for the search at the start and one for the rest.
    """
    steps, skipped = skips(log)
    if not skipped.any():
        return
    covered = np.diff(steps, prepend=steps[0] - _usual_gap(steps)).astype(np.float64)
    first_good = int(np.argmin(skipped > 0)) if (skipped == 0).any() else skipped.size
    if first_good:
        count, of = skipped[:first_good].sum(), covered[:first_good].sum()
        evidence = f"{count:g} of the first {of:g} steps were skipped: the search for a loss scale."
        yield LogEvent("skipped-steps", "info", int(steps[0]), int(steps[first_good - 1]), evidence)
    steps, skipped, covered = steps[first_good:], skipped[first_good:], covered[first_good:]
    total = float(skipped.sum())
    if not total:
        return
    rows = np.flatnonzero(skipped)
    share = min(total / max(float(covered.sum()), 1.0), 1.0)
    within = pl.Series(skipped).rolling_sum(BURST_ROWS, min_samples=1).to_numpy()
    of = pl.Series(covered).rolling_sum(BURST_ROWS, min_samples=1).to_numpy()
    burst = (within >= SKIPPED_LEAST) & (within >= BURST_SHARE * of)
    severe = total >= SKIPPED_LEAST and (share >= SKIPPED_SHARE or bool(burst.any()))
    evidence = f"{total:g} updates were skipped in {covered.sum():g} steps because gradients overflowed ({share:.1%})"
    if burst.any():
        row = int(np.argmax(within / np.maximum(of, 1.0)))
        evidence += f", {within[row]:g} of them in the {of[row]:g} steps up to {steps[row]}"
    severity = "warning" if severe else "info"
    yield LogEvent("skipped-steps", severity, int(steps[rows[0]]), int(steps[rows[-1]]), f"{evidence}.")


def skips(log: pl.DataFrame) -> tuple[np.ndarray, Floats]:
    """Count the updates that were skipped since the row before, as logged, else by the halvings of the loss scale.

    Returns:
        Steps, and one count a step; empty where neither was logged.
    """
    if "skipped_steps" in log.columns and log["skipped_steps"].null_count() < log.height:
        # Some logs say it only where there was one.
        rows = log.filter(pl.col("skipped_steps").is_not_null() | pl.col("loss").is_not_null())
        steps, skipped = logged(rows.with_columns(pl.col("skipped_steps").fill_null(0)), "skipped_steps")
        return steps, np.where(np.isfinite(skipped), np.maximum(skipped, 0.0), 0.0)
    steps, scale = logged(log, "loss_scale")
    keep = np.isfinite(scale) & (scale > 0)
    steps, scale = steps[keep], scale[keep]
    if scale.size < 2:
        return steps, np.zeros(scale.size)
    halvings = np.round(-np.diff(np.log2(scale), prepend=np.log2(scale[0])))
    return steps, np.maximum(halvings, 0.0)


def _usual_gap(steps: np.ndarray) -> int:
    return max(int(np.median(np.diff(steps))), 1) if steps.size > 1 else 1
