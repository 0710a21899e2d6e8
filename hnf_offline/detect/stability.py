"""Alarms of the stability ratio: a state machine with hysteresis, because many runs live at the edge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hnf_offline.detect.growth import SPARSE_GAP, forecast
from hnf_offline.detect.measured import Measured, one
from hnf_offline.detect.rules import STUDIED, Rules
from hnf_offline.detect.trailing import Floats
from hnf_offline.findings import Alarm, Spike

QUANTITY = "hessian.stability_ratio"
RATCHET = 0.7  # lasting factor on the learning rate at an alarm
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
    noisy step: there the median of the last five rows counts, the growth is fitted at the distance of
    checkpoints, and the machine arms again only `refractory` steps after the last S > on. At a checkpoint
    the forecast is that of the checkpoints alone, so looking closer can only make an alarm earlier.

    Args:
        profile: the long table.
        log: the log (unused beyond what the spikes say; kept beside the other alarms).
        spikes: spikes; only those whose onset is at or before a checkpoint count there.
        rules: the thresholds.

    Returns:
        The alarms in order; `step` and `known_at` are the checkpoint, or the step of the zoom.
    """
    series = one(profile, QUANTITY)
    rates = dict(_pairs(one(profile, "optimizer.learning_rate")))
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
            place = series.place(row)
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
            crossing = _forecast(series, usable_from, row, level, rules)
            if crossing is not None:
                alarms.append(
                    _forecast_alarm(step, series.place(row), value, crossing, rates.get(step), rules)
                )
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


def _forecast(series: Measured, first: int, row: int, level: float, rules: Rules) -> float | None:
    """Forecast the crossing of `on` from what was measured since the last aftershock.

    At a checkpoint: from the checkpoints. In a zoom: from the level now, and earlier values at least the usual
    distance of checkpoints apart, so that five neighbouring steps never make a fit.

    Returns:
        The step of the crossing, None without one within the horizon.
    """
    steps, values, gap = _spaced(series, first, row, level)
    if steps.size < 2:
        return None
    horizon = max(float(rules.forecast_steps), rules.forecast_gaps * gap)
    return forecast(steps, values, float(steps[-1]), rules.on, horizon, straight=rules.straight)


def _spaced(series: Measured, first: int, row: int, level: float) -> tuple[NDArray[np.int64], Floats, float]:
    """Choose the points of a forecast, and say how far apart checkpoints usually are.

    Returns:
        Steps, values and the gap.
    """
    usable = np.arange(first, row + 1)
    checkpoints = usable[~series.zoomed[usable]] if series.zoomed.size else usable
    gaps = np.diff(series.steps[checkpoints][-5:])
    gap = float(np.median(gaps)) if gaps.size else float(SPARSE_GAP)
    if not series.from_zoom(row):
        return series.steps[checkpoints], series.values[checkpoints], gap
    chosen = [row]
    for earlier in usable[-2::-1].tolist():
        if series.steps[chosen[-1]] - series.steps[earlier] >= gap and np.isfinite(series.values[earlier]):
            chosen.append(earlier)
    chosen.reverse()
    values = np.array([*(np.median(_recent(series, first, one)) for one in chosen[:-1]), level])
    return series.steps[chosen], values, gap


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
