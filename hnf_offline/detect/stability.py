"""Alarms of the stability ratio: a state machine with hysteresis, because many runs live at the edge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from hnf_offline.detect.growth import forecast
from hnf_offline.detect.measured import Measured, one
from hnf_offline.detect.rules import STUDIED, Rules
from hnf_offline.findings import Alarm, Spike

QUANTITY = "hessian.stability_ratio"
RATCHET = 0.7  # lasting factor on the learning rate at an alarm


def stability_alarms(
    profile: pl.DataFrame, log: pl.DataFrame, spikes: Sequence[Spike], rules: Rules = STUDIED
) -> tuple[Alarm, ...]:
    """Alarms of the whole model's stability ratio S.

    The machine arms at a checkpoint with S < off. Armed, it alarms when S > on ("edge") or when the growth
    of S reaches `on` within the horizon ("forecast"): one alarm a climb. If a forecast comes true, that is
    a note ("edge-confirmed", severity info); if it stays out, the machine arms again below `off`. A spike
    disarms it, and for `refractory` steps from its onset no checkpoint counts. A run whose first S is
    already above `on` was never seen to climb: a note ("edge-from-start", info).

    Args:
        profile: the long table.
        log: the log (unused beyond what the spikes say; kept beside the other alarms).
        spikes: spikes; only those whose onset is at or before a checkpoint count there.
        rules: the thresholds.

    Returns:
        The alarms in order; `step` and `known_at` are the checkpoint.
    """
    series = one(profile, QUANTITY)
    rates = dict(_pairs(one(profile, "optimizer.learning_rate")))
    onsets = np.sort(np.array([spike.onset for spike in spikes], dtype=np.int64))
    alarms: list[Alarm] = []
    state = "start"
    usable_from = 0
    seen = 0
    expires = 0.0
    for row, (step, value) in enumerate(_pairs(series)):
        spiked = int(np.searchsorted(onsets, step, side="right"))
        if spiked > seen:
            seen, state = spiked, "quiet"
        if spiked and step - onsets[spiked - 1] < rules.refractory:
            usable_from = row + 1
            continue
        if not np.isfinite(value):
            continue
        stale = value < rules.forecast_from or step > expires
        if value < rules.off and (state != "forecast" or stale):
            state = "armed"
        if value > rules.on:
            if state == "armed":
                alarms.append(_edge(step, value, rates.get(step), rules))
                state = "alarmed"
            elif state == "forecast":
                alarms.append(_note(step, value, rules, "edge-confirmed", "as forecast"))
                state = "alarmed"
            elif state == "start":
                alarms.append(
                    _note(step, value, rules, "edge-from-start", "at the first checkpoint that was measured")
                )
                state = "alarmed"
        elif state == "armed" and value > rules.forecast_from:
            crossing = _forecast(series, usable_from, row, rules)
            if crossing is not None:
                alarms.append(_forecast_alarm(step, value, crossing, rates.get(step), rules))
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


def _forecast(series: Measured, first: int, row: int, rules: Rules) -> float | None:
    """Forecast the crossing of `on` from the checkpoints since the last aftershock.

    Returns:
        The step of the crossing, None without one within the horizon.
    """
    steps, values = series.steps[first : row + 1], series.values[first : row + 1]
    if steps.size < 2:
        return None
    gap = float(np.median(np.diff(steps[-5:])))
    horizon = max(float(rules.forecast_steps), rules.forecast_gaps * gap)
    return forecast(steps, values, float(steps[-1]), rules.on, horizon, straight=rules.straight)


def _edge(step: int, value: float, rate: float | None, rules: Rules) -> Alarm:
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
        text=f"stability ratio rose to {_ratio(value)} at checkpoint {step}: past the edge of stability.",
        action=_lower(value, rate),
    )


def _forecast_alarm(step: int, value: float, crossing: float, rate: float | None, rules: Rules) -> Alarm:
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
        text=f"stability ratio is {_ratio(value)} at checkpoint {step} and grows towards 1, "
        f"which it reaches at about step {crossing:.0f}.",
        action=_lower(value, rate),
        projected_step=float(crossing),
    )


def _note(step: int, value: float, rules: Rules, rule: str, how: str) -> Alarm:
    """A note that does not count as an alarm of its own.

    Returns:
        An alarm of severity "info".
    """
    text = f"stability ratio is {_ratio(value)} at checkpoint {step}, above 1 {how}."
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
