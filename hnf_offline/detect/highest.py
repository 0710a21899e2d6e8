"""The highest rise of a log that is no spike: what a rule came nearest to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from hnf_offline.detect.spike_rules import FLOOR, HISTORY, WINDOW
from hnf_offline.detect.spikes import loss_of
from hnf_offline.detect.trailing import below_median, median_and_sigma, medians_at, trailing_median
from hnf_offline.findings import Spike

TRIED = 10_000  # rows whose median is taken
FAR = 25  # rows between the windows that bound the others


def highest_rise(log: pl.DataFrame, spikes: Sequence[Spike]) -> dict[str, Any] | None:
    """Find the row that lies highest above the median of the 60 rows before it, outside of all spikes.

    Rises are ratios where all losses are positive, differences elsewhere; z is that of the robust rule.

    Returns:
        {"step", "loss", "before", "z"}, None where no row outside of spikes rises.
    """
    steps, loss = loss_of(log)
    keep = np.isfinite(loss)
    for spike in spikes:
        last = steps[-1] if spike.end is None else spike.end - 1
        keep[np.searchsorted(steps, spike.onset) : np.searchsorted(steps, last, side="right")] = False
    steps, loss = steps[keep], loss[keep]
    if loss.size <= HISTORY:
        return None
    positive = bool((loss > 0).all())
    level = np.log(loss) if positive else loss
    most = level - below_median(level, WINDOW, FAR)
    rows, untried = np.arange(most.size), -np.inf
    if most.size > WINDOW + TRIED:
        rows = np.argpartition(-most, WINDOW + TRIED)[: WINDOW + TRIED]
        untried = float(most[rows].min())
    rises = level[rows] - medians_at(level, rows, WINDOW, HISTORY)
    place = int(np.nanargmax(rises))
    if rises[place] < untried:  # one that was not tried may be higher
        rows = np.arange(most.size)
        rises = level - trailing_median(level, WINDOW, HISTORY)
        place = int(np.nanargmax(rises))
    row = int(rows[place])
    if rises[place] <= 0:
        return None
    centre, sigma = median_and_sigma(level, np.array([row]), WINDOW)
    unit = 1.0 if positive else max(abs(float(centre[0])), FLOOR)
    before = float(np.exp(centre[0]) if positive else centre[0])
    z = float((level[row] - centre[0]) / max(float(sigma[0]), FLOOR * unit))
    return {"step": int(steps[row]), "loss": float(loss[row]), "before": before, "z": z}
