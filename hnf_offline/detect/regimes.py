"""Regimes of the stability ratio: when a crossing of 1 predicts a spike, and when it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from hnf_offline.detect.growth import fit_growth
from hnf_offline.detect.measured import one
from hnf_offline.detect.trailing import Floats
from hnf_offline.findings import Spike

QUIET = 0.3
LOW = 0.7  # a climb starts below this
EDGE, ABOVE = 0.8, 1.3
LONG_STEPS, LONG_CHECKPOINTS = 100, 8  # at the edge for so long is hovering
AFTERSHOCK = 16
RISE = 1.3  # factor that makes a rise a climb

TEXTS = {
    "quiet": "far below the edge of stability: nothing to expect from it",
    "climb": "climbs towards the edge: crossing 1 is predictive here",
    "hover": "lives at the edge: crossing 1 is normal here, and an alarm is right as often as chance",
    "plateau": "stays level below the edge: with minibatch noise the threshold 1 does not apply",
    "excursion": "above the edge for a short time",
}


def regimes(profile: pl.DataFrame, spikes: Sequence[Spike]) -> tuple[dict[str, Any], ...]:
    """Divide the run into regimes of the whole model's stability ratio S, in hindsight.

    Between spikes: "quiet" S < 0.3; "climb" S was below 0.7 and its fit rises by at least 1.3 in log-linear
    growth; "hover" S within 0.8 to 1.3 for 100 steps or 8 checkpoints; "plateau" between 0.3 and 0.8
    without such a rise; "excursion" above 1.3, briefly near 1 without a climb, or within 16 steps after a
    spike.

    Returns:
        {"start", "end", "regime", "text"} in order, over checkpoints; empty where S was not measured.
    """
    series = one(profile, "hessian.stability_ratio")
    keep = np.isfinite(series.values)
    steps, values = series.steps[keep], series.values[keep]
    if steps.size == 0:
        return ()
    onsets = np.sort(np.array([spike.onset for spike in spikes], dtype=np.int64))
    after = np.searchsorted(onsets, steps, side="right")
    labels = np.full(steps.size, "", dtype=object)
    for stretch in np.unique(after):
        rows = np.flatnonzero(after == stretch)
        if stretch:
            shaken = rows[steps[rows] - onsets[stretch - 1] < AFTERSHOCK]
            labels[shaken] = "excursion"
            rows = rows[shaken.size :]
        _label(labels, rows, steps, values)
    cuts = np.flatnonzero((labels[1:] != labels[:-1]) | (after[1:] != after[:-1])) + 1
    found = []
    for part in np.split(np.arange(steps.size), cuts):
        regime, inside = str(labels[part[0]]), values[part]
        text = f"S {inside[0]:.2g} to {inside[-1]:.2g} (highest {inside.max():.2g}): {TEXTS[regime]}"
        found.append({
            "start": int(steps[part[0]]),
            "end": int(steps[part[-1]]),
            "regime": regime,
            "text": text,
        })
    return tuple(found)


def _label(
    labels: NDArray[np.object_], rows: NDArray[np.intp], steps: NDArray[np.int64], values: Floats
) -> None:
    """Label the checkpoints between two spikes, in place."""
    level = np.asarray(median_filter(values[rows], 3, mode="nearest")) if rows.size else values[rows]
    band = np.digitize(level, [QUIET, EDGE, ABOVE])  # 0 quiet, 1 between, 2 at the edge, 3 above
    labels[rows] = np.array(["quiet", "plateau", "excursion", "excursion"], dtype=object)[band]
    for part in _runs(band == 2):
        inside = rows[part]
        if inside.size >= LONG_CHECKPOINTS or steps[inside[-1]] - steps[inside[0]] >= LONG_STEPS:
            labels[inside] = "hover"
    climbing = (band == 1) | ((band == 2) & (labels[rows] != "hover"))
    for part in _runs(climbing):
        inside = rows[part]
        lowest = inside[int(np.argmin(values[inside]))]
        rising = inside[inside >= lowest]
        if values[lowest] >= LOW or rising.size < 3:
            continue
        fit = fit_growth(steps[rising], values[rising])
        grown = fit is not None and fit.slope * (steps[rising[-1]] - steps[rising[0]]) >= np.log(RISE)
        if fit is not None and grown and fit.low > 0:
            labels[rising] = "climb"


def _runs(flags: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    """Maximal runs of flags.

    Returns:
        Row numbers of each run.
    """
    rows = np.flatnonzero(flags)
    if rows.size == 0:
        return []
    return list(np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1))
