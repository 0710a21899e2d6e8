"""Alarms of the stability ratio: a state machine with hysteresis, because many runs live at the edge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hnf_offline.detect.growth import POINTS, SPARSE_GAP, forecast
from hnf_offline.detect.measured import Measured, one
from hnf_offline.detect.rules import STUDIED, Rules
from hnf_offline.detect.trailing import Flags, Floats
from hnf_offline.findings import Alarm, Spike

QUANTITY = "hessian.stability_ratio"
RATCHET = 0.7  # lasting factor on the learning rate at an alarm
STUDIED_GAP = 8  # steps between two looks in the prediction study, whose forecasts these are
STEADY = 5  # rows of a zoom whose median arms and forecasts: one step's S is noisy


def stability_alarms(
    profile: pl.DataFrame, log: pl.DataFrame, spikes: Sequence[Spike], rules: Rules = STUDIED
) -> tuple[Alarm, ...]:
    """Alarms of the whole model's stability ratio S.

    The machine arms at a checkpoint with S < off. Armed, it alarms when S > on ("edge") or when the growth
    of S reaches `on` within the horizon ("forecast"): one alarm a climb. If a forecast comes true, that is
    a note ("edge-confirmed", severity info); if it stays out, the machine arms again below `off`. A spike
    disarms it, and for `refractory` steps from its onset no checkpoint counts. A run whose first S is
    already above `on` was never seen to climb: a note ("edge-from-start", info).

    Where a stretch was zoomed, S at every step crosses the edge. To arm and to forecast takes more than one
    noisy step: there the median of the last five rows counts, and the machine arms again only `refractory`
    steps after the last S > on. A forecast there is made from that stretch alone, at the distance of 8 steps
    that was studied: what a monitor that looks at every step says does not depend on how far apart checkpoints
    were saved. Outside of zoomed stretches forecasts are made from checkpoints alone.

    Args:
        profile: the long table.
        log: the log (unused beyond what the spikes say; kept beside the other alarms).
        spikes: spikes; only those whose onset is at or before a checkpoint count there.
        rules: the thresholds.

    Returns:
        The alarms in order; `step` and `known_at` are the checkpoint, or the step of the zoom.
    """
    series = one(profile, QUANTITY)
    places = [series.place(row) for row in range(series.steps.size)]
    rates = dict(_pairs(one(profile, "optimizer.learning_rate")))
    saved = ~series.zoomed if series.zoomed.size else np.ones(series.steps.size, dtype=np.bool_)
    begins = _stretches(series)
    series = replace(series, zoomed=_of_zoom(series, begins))
    onsets = np.sort(np.array([spike.onset for spike in spikes], dtype=np.int64))
    alarms: list[Alarm] = []
    state = "start"
    usable_from = 0
    seen = 0
    expires = 0.0
    last_above = -np.inf
    for row, (step, value) in enumerate(_pairs(series)):
        spiked = int(np.searchsorted(onsets, step, side="right"))
        if spiked > seen:
            seen, state = spiked, "quiet"
        if spiked and step - onsets[spiked - 1] < rules.refractory:
            usable_from = row + 1
            continue
        if not np.isfinite(value):
            continue
        recent = _recent(series, usable_from, row)
        level = _level(recent, series.from_zoom(row))
        settled = not series.from_zoom(row) or step - last_above >= rules.refractory
        calm = float(recent.max()) if level is None else level  # a few steps arm only if all of them are low
        if calm < rules.off and settled:
            stale = calm < rules.forecast_from or step > expires
            state = "armed" if state != "forecast" or stale else state
        if value > rules.on:
            last_above = step
            place = places[row]
            if state == "armed":
                alarms.append(_edge(step, place, value, rates.get(step), rules))
                state = "alarmed"
            elif state == "forecast":
                alarms.append(_note(step, place, value, rules, "edge-confirmed", "as forecast"))
                state = "alarmed"
            elif state == "start":
                first = f"at the first {place.split()[0]} that was measured"
                alarms.append(_note(step, place, value, rules, "edge-from-start", first))
                state = "alarmed"
        elif state == "armed" and level is not None and level > rules.forecast_from:
            crossing = _forecast(series, saved, begins, usable_from, row, level, rules)
            if crossing is not None:
                alarms.append(_forecast_alarm(step, places[row], value, crossing, rates.get(step), rules))
                state = "forecast"
                expires = crossing + 2 * (crossing - step) + rules.forecast_steps
        if state == "start":
            state = "quiet"
    return tuple(alarms)


def _pairs(series: Measured) -> list[tuple[int, float]]:
    """Go through steps and values as plain numbers.

    Returns:
        (step, value) in order.
    """
    return list(zip(series.steps.tolist(), series.values.tolist(), strict=True))


def _recent(series: Measured, first: int, row: int) -> Floats:
    """Finite values that a row is read with: its own at a checkpoint, in a zoom the last five within 16 steps.

    Returns:
        The values, that of the row last.
    """
    if not series.from_zoom(row):
        return series.values[row : row + 1]
    last = slice(max(first, row - STEADY + 1), row + 1)
    known = series.values[last][series.steps[row] - series.steps[last] <= SPARSE_GAP]
    return np.asarray(known[np.isfinite(known)])


def _level(recent: Floats, zoomed: bool) -> float | None:
    """S as the machine forecasts by it: at a checkpoint its value, in a zoom the median of five rows.

    Returns:
        The level; None where a zoom has fewer rows.
    """
    return None if zoomed and recent.size < STEADY else float(np.median(recent))


def _stretches(series: Measured) -> NDArray[np.int64]:
    """Find the zoomed stretches: rows of a zoom and the checkpoints among them, never more than 16 steps apart.

    Returns:
        For each row the first row of its stretch; -1 outside of stretches.
    """
    begins = np.full(series.steps.size, -1, dtype=np.int64)
    for row in range(series.steps.size):
        joined = row > 0 and begins[row - 1] >= 0 and series.steps[row] - series.steps[row - 1] <= SPARSE_GAP
        if joined:
            begins[row] = begins[row - 1]
        elif series.from_zoom(row):
            begins[row] = row
    return begins


def _of_zoom(series: Measured, begins: NDArray[np.int64]) -> Flags:
    """Mark the rows that are read as a zoom's: its own, and checkpoints once it has enough of a history.

    Returns:
        One flag a row.
    """
    history = (POINTS - 2) * STUDIED_GAP
    long = series.steps - series.steps[np.maximum(begins, 0)] >= history
    own = series.zoomed if series.zoomed.size else np.zeros(series.steps.size, dtype=np.bool_)
    return np.asarray(own | ((begins >= 0) & long))


def _forecast(
    series: Measured,
    saved: Flags,
    begins: NDArray[np.int64],
    first: int,
    row: int,
    level: float,
    rules: Rules,
) -> float | None:
    """Forecast the crossing of `on` from what was measured since the last aftershock.

    In a zoom: from its own rows 8 steps apart, so that neighbouring steps never make a fit, and within the studied
    horizon. Elsewhere, and at a checkpoint soon after a zoom has begun: from the checkpoints.

    Returns:
        The step of the crossing, None without one within the horizon.
    """
    horizon = float(rules.forecast_steps)
    if series.from_zoom(row):
        chosen = _grid(series, max(first, int(begins[row])), row)
        values = np.array([*(np.median(_recent(series, first, one)) for one in chosen[:-1]), level])
    else:
        chosen = np.arange(first, row + 1)
        chosen = chosen[saved[chosen]]
        values = series.values[chosen]
        gaps = np.diff(series.steps[chosen][-5:])
        horizon = max(horizon, rules.forecast_gaps * float(np.median(gaps))) if gaps.size else horizon
    steps = series.steps[chosen]
    if steps.size < 2:
        return None
    return forecast(steps, values, float(steps[-1]), rules.on, horizon, straight=rules.straight)


def _grid(series: Measured, first: int, row: int) -> NDArray[np.int64]:
    """Choose rows up to one of them, at least 8 steps apart.

    Returns:
        Rows, ascending.
    """
    chosen = [row]
    for earlier in range(row - 1, first - 1, -1):
        if series.steps[chosen[-1]] - series.steps[earlier] >= STUDIED_GAP and np.isfinite(
            series.values[earlier]
        ):
            chosen.append(earlier)
    return np.array(chosen[::-1])


def _edge(step: int, place: str, value: float, rate: float | None, rules: Rules) -> Alarm:
    """The alarm of a crossing.

    Returns:
        An alarm of rule "edge".
    """
    return Alarm(
        step=step,
        known_at=step,
        quantity=QUANTITY,
        layer="",
        value=value,
        threshold=rules.on,
        rule="edge",
        severity="danger",
        text=f"stability ratio rose to {_ratio(value)} at {place}: past the edge of stability.",
        action=_lower(value, rate),
    )


def _forecast_alarm(
    step: int, place: str, value: float, crossing: float, rate: float | None, rules: Rules
) -> Alarm:
    """The alarm of a crossing to come.

    Returns:
        An alarm of rule "forecast".
    """
    return Alarm(
        step=step,
        known_at=step,
        quantity=QUANTITY,
        layer="",
        value=value,
        threshold=rules.on,
        rule="forecast",
        severity="warning",
        text=f"stability ratio is {_ratio(value)} at {place} and grows towards 1, "
        f"which it reaches at about step {crossing:.0f}.",
        action=_lower(value, rate),
        projected_step=float(crossing),
    )


def _note(step: int, place: str, value: float, rules: Rules, rule: str, how: str) -> Alarm:
    """A note that does not count as an alarm of its own.

    Returns:
        An alarm of severity "info".
    """
    text = f"stability ratio is {_ratio(value)} at {place}, above 1 {how}."
    return Alarm(step, step, QUANTITY, "", value, rules.on, rule, "info", text)


def _ratio(value: float) -> str:
    """Spell S so that it never looks like the 1 it is above or below.

    Returns:
        "0.888", "1.31", "1.002".
    """
    spelled = (f"{value:.{digits}g}" for digits in (3, 4, 5, 6))
    return next((one for one in spelled if float(one) != 1), f"{value:.17g}")


def _lower(value: float, rate: float | None) -> str:
    """Advice with its number: lr/S, the largest rate that is stable here, or 0.7 times the rate in use.

    The lasting factor 0.7 at an alarm is the ratchet of the prediction study (section 6); from S = 1.4 on lr/S
    asks for more than that.

    Returns:
        One sentence.
    """
    if rate is None or not np.isfinite(rate) or rate <= 0:
        return "Lower the learning rate for good; restoring it brings the next spike."
    stable = rate / value
    return (
        f"Lower the learning rate for good, to at most {min(RATCHET * rate, stable):.2g} (it is {rate:.2g}, "
        f"lr/S is {stable:.3g}); restoring it brings the next spike."
    )
