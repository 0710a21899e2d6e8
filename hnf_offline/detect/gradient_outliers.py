"""Gradient norms that stand out although the loss does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from hnf_offline.detect.measured import logged
from hnf_offline.detect.spike_rules import WINDOW
from hnf_offline.detect.trailing import median_and_sigma, rows_above_median
from hnf_offline.findings import LogEvent, Spike

RATIO, SIGMAS, FLOOR = 4.0, 8.0, 0.05
HISTORY = 20
NEAR_ROWS = 3  # this near an onset, a gradient norm belongs to the spike
NAMED = 5


def gradient_outliers(log: pl.DataFrame, spikes: Sequence[Spike]) -> Iterator[LogEvent]:
    """Gradient norms above four times the median of the 60 rows before, eight sigmas of their log, outside of spikes.

    Such rows are single odd batches that clipping kept from the weights, or a sign of what is to come. Causal.

    Yields:
        Kind "gradient-outliers", at most one for the whole log.
    """
    steps, norms = logged(log, "grad_norm")
    keep = np.isfinite(norms) & (norms > 0)
    steps, level = steps[keep], np.log(norms[keep])
    if level.size <= HISTORY:
        return
    rows, _ = rows_above_median(level, WINDOW, HISTORY, float(np.log(RATIO)))
    centre, sigma = median_and_sigma(level, rows, WINDOW)
    z = (level[rows] - centre) / np.maximum(sigma, FLOOR)
    chosen = (z > SIGMAS) & ~_in_spikes(steps, rows, spikes)
    rows, centre = rows[chosen], centre[chosen]
    if not rows.size:
        return
    worst = np.sort(np.argsort(level[rows] - centre, kind="stable")[::-1][:NAMED])
    told = ", ".join(
        f"{np.exp(level[rows[one]]):.3g} at {steps[rows[one]]} (median {np.exp(centre[one]):.3g})"
        for one in worst
    )
    count = "one row" if rows.size == 1 else f"{rows.size} rows"
    evidence = f"the gradient norm stands out in {count} without a loss spike: {told}"
    evidence += "." if rows.size <= NAMED else ", ..."
    yield LogEvent("gradient-outliers", "info", int(steps[rows[0]]), int(steps[rows[-1]]), evidence)


def _in_spikes(steps: np.ndarray, rows: np.ndarray, spikes: Sequence[Spike]) -> np.ndarray:
    # Which of some rows lie in a spike, or shortly before one.
    inside = np.zeros(rows.size, dtype=np.bool_)
    for spike in spikes:
        first = int(np.searchsorted(steps, spike.onset)) - NEAR_ROWS
        last = steps.size if spike.end is None else int(np.searchsorted(steps, spike.end, side="right"))
        inside |= (rows >= first) & (rows < last)
    return inside
