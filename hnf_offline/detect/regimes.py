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
SHAKEN, AFTERSHOCK = 16, 40  # steps after an onset: surely, and at most, the aftershock
RISE = 1.3  # factor that makes a rise a climb; less than that, either way, is level
LEVEL_CHECKPOINTS = 5  # fewer cannot show that S is level
SHORTEST = 3  # fewer checkpoints are no regime of their own

Labels = NDArray[np.object_]
Rows = NDArray[np.intp]


def regimes(profile: pl.DataFrame, spikes: Sequence[Spike]) -> tuple[dict[str, Any], ...]:
    """Divide the run into regimes of the whole model's stability ratio S, in hindsight.

    After a spike "aftershock": the checkpoints within 16 steps of its onset, and up to the lowest S within 40.
    Between spikes: "quiet" S < 0.3; "climb" S was below 0.7 and its fit rises by at least 1.3 in log-linear
    growth; "hover" S within 0.8 to 1.3 for 100 steps or 8 checkpoints without such a rise; "plateau" at least
    5 checkpoints between 0.3 and 0.8 whose fit changes by less than 1.3; "falling" one that falls by more;
    "excursion" at or beyond the edge but no hovering, and "near" where all of it is below; "unsteady" and
    "short" what is none of these or too short to tell. Stretches of fewer than 3 checkpoints count to the longer
    neighbour, and right after a spike to its aftershock.

    Args:
        profile: the long table.
        spikes: the loss spikes.

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
    found = []
    for stretch in np.unique(after):
        rows = np.flatnonzero(after == stretch)
        onset = int(onsets[stretch - 1]) if stretch else None
        labels = _labels(steps[rows], values[rows], onset)
        for part in _runs_of_one(labels):
            inside = rows[part]
            regime = str(labels[part[0]])
            if regime == "excursion" and values[inside].max() <= 1:
                regime = "near"
            if regime == "climb" and values[inside[-1]] <= values[inside].min():
                regime = "unsteady"  # a short stretch that joined it has taken the climb back
            found.append({
                "start": int(steps[inside[0]]),
                "end": int(steps[inside[-1]]),
                "regime": regime,
                "text": _sentence(regime, values[inside], onset),
            })
    return tuple(found)


def _labels(steps: NDArray[np.int64], values: Floats, onset: int | None) -> Labels:
    """Label the checkpoints between two spikes.

    Returns:
        One regime a checkpoint.
    """
    labels = np.full(steps.size, "", dtype=object)
    first = 0
    if onset is not None:
        near = np.flatnonzero(steps - onset <= AFTERSHOCK)
        lowest = int(near[np.argmin(values[near])]) if near.size else 0
        first = max(int(np.sum(steps - onset < SHAKEN)), lowest)
    labels[:first] = "aftershock"
    if first < steps.size:
        labels[first:] = _between(steps[first:], values[first:])
    _merge_short(labels, steps, onset)
    return labels


def _between(steps: NDArray[np.int64], values: Floats) -> Labels:
    """Label checkpoints that no spike shakes, however short the stretches.

    Returns:
        One regime a checkpoint.
    """
    labels = np.full(steps.size, "", dtype=object)
    level = np.asarray(median_filter(values, 3, mode="nearest"))
    band = np.digitize(level, [QUIET, EDGE, ABOVE])  # 0 quiet, 1 between, 2 at the edge, 3 above
    labels[band == 0] = "quiet"
    labels[band == 3] = "excursion"
    for part in _runs(band == 2):
        long = part.size >= LONG_CHECKPOINTS or steps[part[-1]] - steps[part[0]] >= LONG_STEPS
        labels[part] = "hover" if long and _change(steps[part], values[part]) < 1 else "excursion"
    for part in _runs((band == 1) | ((band == 2) & (labels != "hover"))):
        rising = part[int(np.argmin(values[part])) :]
        if values[rising[0]] < LOW and rising.size >= SHORTEST and _change(steps[rising], values[rising]) > 0:
            labels[rising] = "climb"
    for part in _runs((band == 1) & (labels != "climb")):
        change = _change(steps[part], values[part])
        if part.size < LEVEL_CHECKPOINTS and change == 0:
            labels[part] = "short"
        else:
            labels[part] = {-1: "falling", 0: "plateau", 1: "unsteady"}[change]
    return labels


def _change(steps: NDArray[np.int64], values: Floats) -> int:
    """Say whether the log-linear fit changes by the factor `RISE`, beyond the interval of its slope.

    Returns:
        1 for a rise, -1 for a fall, 0 for neither.
    """
    fit = fit_growth(steps, values)
    if fit is None or abs(fit.slope) * (steps[-1] - steps[0]) < np.log(RISE):
        return 0
    return 1 if fit.low > 0 else -1 if fit.high < 0 else 0


def _merge_short(labels: Labels, steps: NDArray[np.int64], onset: int | None) -> None:
    """Give stretches of fewer than three checkpoints to the aftershock or the longer neighbour, in place."""
    while True:
        stretches = _runs_of_one(labels)
        short = [
            place
            for place, part in enumerate(stretches)
            if part.size < SHORTEST and labels[part[0]] not in {"aftershock", "alone"}
        ]
        if not short:
            break
        place = min(short, key=lambda at: stretches[at].size)
        part = stretches[place]
        shaken = place == 0 or labels[stretches[place - 1][0]] == "aftershock"
        beside = [
            stretches[at]
            for at in (place - 1, place + 1)
            if 0 <= at < len(stretches) and labels[stretches[at][0]] not in {"aftershock", "alone"}
        ]
        if onset is not None and shaken and steps[part[0]] - onset <= AFTERSHOCK:
            labels[part] = "aftershock"
        elif beside:
            labels[part] = labels[max(beside, key=lambda stretch: stretch.size)[0]]
        else:
            labels[part] = "alone"
    labels[labels == "alone"] = "short"


def _sentence(regime: str, inside: Floats, onset: int | None) -> str:
    """Say what a stretch is, true of the numbers in it.

    Returns:
        One sentence without a full stop.
    """
    first, last, low, high = (
        f"{one:.2f}" for one in (inside[0], inside[-1], float(inside.min()), float(inside.max()))
    )
    above = int(np.sum(inside > 1))
    span = f"S {low}" if low == high else f"S {low} to {high}"
    checkpoints = f"{inside.size} checkpoint{'' if inside.size == 1 else 's'}"
    crossed = f"; above 1 at {above} of {checkpoints}" if above else ""
    if regime == "aftershock":
        return f"{span}, aftershock of the spike at {onset}: says nothing of the next one"
    if regime == "quiet":
        return f"{span}, far below the edge of stability: nothing to expect from it{crossed}"
    if regime == "climb":
        way = (
            f"falls from {first} to {low}, then climbs"
            if float(low) < float(first)
            else f"climbs from {first}"
        )
        end = f"{high}" if high == last else f"{high}, last {last}"
        return f"S {way} to {end}: crossing 1 is predictive here"
    if regime == "hover":
        if not above:
            return f"{span}, stays just below the edge and does not cross it"
        return f"{span}, lives at the edge: crossing 1 is normal here, an alarm is right as often as chance{crossed}"
    if regime == "plateau":
        return f"{span}, stays level below the edge; where batches are noisy the threshold 1 does not apply{crossed}"
    if regime == "falling":
        return f"S falls from {first} to {last}: moves away from the edge{crossed}"
    if regime == "excursion":
        return f"{span}, above the edge at {above} of {checkpoints}"
    if regime == "near":
        return f"{span}, near the edge, not above it"
    if regime == "unsteady":
        return f"{span}, neither level nor a clear climb{crossed}"
    return f"{span} over {checkpoints}: too few to call a regime{crossed}"


def _runs(flags: NDArray[np.bool_]) -> list[Rows]:
    """Maximal runs of flags.

    Returns:
        Row numbers of each run.
    """
    rows = np.flatnonzero(flags)
    if rows.size == 0:
        return []
    return list(np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1))


def _runs_of_one(labels: Labels) -> list[Rows]:
    """Maximal runs of one label.

    Returns:
        Row numbers of each run.
    """
    return list(np.split(np.arange(labels.size), np.flatnonzero(labels[1:] != labels[:-1]) + 1))
