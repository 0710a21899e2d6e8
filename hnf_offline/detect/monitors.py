"""Alarms of single quantities: bands, rapid increases, overflow to come, non-finite values.

What the source document proposed as warnings and fires in healthy runs too is of severity "info" here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from hnf_offline.detect.episodes import Episode, Together, alarm, starts, together
from hnf_offline.detect.growth import fit_growth
from hnf_offline.detect.measured import Measured, logged, measured
from hnf_offline.detect.rules import STUDIED, Rules
from hnf_offline.detect.trailing import Floats
from hnf_offline.findings import Alarm
from hnf_offline.table import of_checkpoints

#: Curvatures that are positive, and estimates of them: the families whose sudden growth means something.
RISING = ("hessian.lambda_max", "hessian.stability_ratio", "proxy.")
NONFINITE_ROWS = 3  # scaled fp16 skips single steps: only so many in a row are a finding


def band_alarms(profile: pl.DataFrame, rules: Rules = STUDIED) -> tuple[Alarm, ...]:
    """Attention logits above 1e3 (warning) and 1e4 (danger); component estimates above 1e6 and 1e9 (info).

    The estimates (`proxy.*_log10`) are bounds by the formulas of the source document, and pass its bands in
    healthy models. A band is told when a layer is first in it, and again after it was half a decade below it;
    of several bands and layers at one checkpoint the highest is told, with the count of the rest.

    Returns:
        One alarm a (quantity, checkpoint).
    """
    if profile.is_empty():
        return ()
    name = pl.col("quantity")
    logits = _entered(
        profile.filter(name == "attention.logit_max"), (rules.logit_warning, rules.logit_danger), rules
    )
    estimates = _entered(
        profile.filter(name.str.starts_with("proxy.") & name.str.ends_with("_log10")),
        (10.0**rules.band_warning, 10.0**rules.band_danger),
        rules,
    )
    alarms: list[Alarm] = []
    for group in together(logits):
        told = group.told
        severity = "danger" if told.threshold >= rules.logit_danger else "warning"
        text = f"largest attention logit of {_name(told)} is {told.value:.3g} at {told.place}"
        text += f", above {told.threshold:g}{_more(group)}."
        alarms.append(alarm(told, f"band-{severity}", severity, text, "Normalise queries and keys."))
    for group in together(estimates):
        told = replace(group.told, threshold=float(np.log10(group.told.threshold)))
        word = "danger" if told.threshold >= rules.band_danger else "warning"
        text = f"{told.series.quantity} of {_name(told)} is in its {word} band: "
        text += f"1e{told.value:.1f} at {told.place}{_more(group)}."
        alarms.append(alarm(told, f"band-{word}", "info", text))
    return tuple(alarms)


def increase_alarms(profile: pl.DataFrame, rules: Rules = STUDIED) -> tuple[Alarm, ...]:
    """Rapid increase of a curvature or an estimate of one: ten times within ten checkpoints, to a new high.

    What was measured between checkpoints is left out: the window counts checkpoints. "warning" for
    lambda_max of the whole model, else "info". A series speaks again after ten checkpoints without such a rise.

    Returns:
        One alarm a (quantity, checkpoint), of rule "rapid-increase"; it names the layer that grew most.
    """
    window = rules.increase_checkpoints
    decades = float(np.log10(rules.increase))
    rises: list[Episode] = []
    lowest: dict[tuple[str, str, int], float] = {}
    for series in _chosen(of_checkpoints(profile), RISING):
        level = _log10(series)
        if level.size < window:
            continue
        before = np.full(level.size, np.nan)
        before[window - 1 :] = np.lib.stride_tricks.sliding_window_view(level, window).min(axis=1)
        highest = np.maximum.accumulate(np.where(np.isfinite(level), level, -np.inf))
        earlier = np.concatenate([[np.inf], highest[:-1]])
        for row in starts((level - before > decades) & (level > earlier), rows=window):
            threshold = float(before[row]) + decades
            threshold = threshold if series.quantity.endswith("_log10") else 10.0**threshold
            rises.append(Episode(series, row, threshold, float(level[row] - before[row])))
            lowest[series.quantity, series.layer, row] = float(before[row])
    alarms: list[Alarm] = []
    for group in together(rises):
        told = group.told
        low = lowest[told.series.quantity, told.series.layer, told.row]
        text = (
            f"{told.series.quantity} of {_name(told)} grew {_growth(told.size)} within {window} checkpoints, "
        )
        text += f"{_spelled(low)} to {_spelled(low + told.size)}, a new high at {told.place}"
        text += f"{_more(group)}."
        loud = group.whole is not None and told.series.quantity == "hessian.lambda_max"
        alarms.append(alarm(told, "rapid-increase", "warning" if loud else "info", text))
    return tuple(alarms)


def overflow_alarms(profile: pl.DataFrame, rules: Rules = STUDIED) -> tuple[Alarm, ...]:
    """Growth that would pass 1e15 within 100 steps: the source document's forecast, on a straight fit.

    What was measured between checkpoints is left out: the fit counts checkpoints.

    Returns:
        One alarm a (quantity, checkpoint), of rule "overflow-forecast".
    """
    points = rules.overflow_checkpoints
    found: list[Episode] = []
    for series in _chosen(of_checkpoints(profile), (*RISING, "norm.inverse_sigma", "attention.logit_max")):
        level = _log10(series)
        reached = np.full(level.size, -np.inf)
        for row in range(points - 1, level.size):
            part = slice(row - points + 1, row + 1)
            if level[row] - level[row - points + 1] <= 0 or level[row] > rules.overflow_log10:
                continue
            fit = fit_growth(series.steps[part], np.exp(np.clip(level[part], -300, 300)))
            if fit is not None and fit.r2 > rules.straight and fit.slope > 0:
                reached[row] = level[row] + fit.slope * rules.overflow_steps
        found += [
            Episode(series, row, 10.0**rules.overflow_log10, float(reached[row]))
            for row in starts(reached > rules.overflow_log10)
        ]
    alarms = []
    for group in together(found):
        told = group.told
        text = f"{told.series.quantity} of {_name(told)} would reach 1e{told.size:.0f} within "
        text += f"{rules.overflow_steps} steps of {told.place}{_more(group)}."
        severity = "info" if told.series.quantity.startswith("proxy.") else "warning"
        alarms.append(alarm(told, "overflow-forecast", severity, text))
    return tuple(alarms)


def nonfinite_alarms(profile: pl.DataFrame, log: pl.DataFrame) -> tuple[Alarm, ...]:
    """Values that are not finite: in weights, in measurements, in three logged gradient norms in a row.

    Of the layers of one quantity the first in forward order at the first such checkpoint is named. Component
    estimates overflow by their formula: "info".

    Returns:
        One alarm a quantity, of rule "nonfinite".
    """
    first: dict[str, tuple[int, int, Measured, int]] = {}
    layers: dict[tuple[str, int], int] = {}
    for series in measured(profile):
        wrong = series.values > 0 if series.quantity == "weight.nonfinite" else ~np.isfinite(series.values)
        for row in np.flatnonzero(wrong)[:1]:
            step = int(series.steps[row])
            layers[series.quantity, step] = layers.get((series.quantity, step), 0) + 1
            candidate = (step, series.depth, series, int(row))
            if series.quantity not in first or candidate[:2] < first[series.quantity][:2]:
                first[series.quantity] = candidate
    alarms = []
    for quantity, (step, _, series, row) in first.items():
        others = layers[quantity, step] - 1
        more = f" and {others} more layers" if others else ""
        text = f"{quantity} of {series.layer or 'the model'}{more} is not finite at {series.place(row)}."
        if quantity == "weight.nonfinite":
            share = float(series.values[row])
            text = f"{share:.2g} of the weights of {series.layer or 'the model'}{more} "
            text += f"are not finite at {series.place(row)}."
        severity = "info" if quantity.startswith("proxy.") else "danger"
        action = "" if severity == "info" else f"Go back to a checkpoint before {step}."
        alarms.append(alarm(Episode(series, row, 0.0, 0.0), "nonfinite", severity, text, action))
    steps, norms = logged(log, "grad_norm")
    if steps.size >= NONFINITE_ROWS:
        broken = np.lib.stride_tricks.sliding_window_view(~np.isfinite(norms), NONFINITE_ROWS).all(axis=1)
        for row in starts(np.concatenate([np.zeros(NONFINITE_ROWS - 1, dtype=np.bool_), broken]))[:1]:
            text = (
                f"gradient norm has not been finite for {NONFINITE_ROWS} logged steps at step {steps[row]}."
            )
            norm = Measured("grad_norm", "", -1, steps, norms)
            alarms.append(alarm(Episode(norm, row, 0.0, 0.0), "nonfinite", "danger", text))
    return tuple(alarms)


def _entered(profile: pl.DataFrame, bands: tuple[float, float], rules: Rules) -> list[Episode]:
    """Checkpoints at which a layer enters a band from below; of both bands at once the higher.

    Args:
        profile: rows of the quantities.
        bands: lower and higher threshold of the value (not of its logarithm).
        rules: the thresholds.

    Returns:
        Episodes, their size the decades above the lower band.
    """
    found: list[Episode] = []
    for series in measured(profile):
        level = _log10(series)
        told: dict[int, float] = {}
        for band in bands:
            floor = float(np.log10(band))
            with np.errstate(invalid="ignore"):
                inside, below = level >= floor, level < floor - rules.band_gap
            told |= dict.fromkeys(starts(inside & np.isfinite(level), below), band)
        lower = float(np.log10(bands[0]))
        found += [Episode(series, row, band, float(level[row]) - lower) for row, band in sorted(told.items())]
    return found


def _name(episode: Episode) -> str:
    return episode.series.layer or "the model"


def _more(group: Together) -> str:
    """The other layers, set off as an addition.

    Returns:
        " (and 3 more layers)", "" for none.
    """
    return f" ({group.more})" if group.more else ""


def _growth(decades: float) -> str:
    """Spell a factor of growth so that it can be read.

    Returns:
        "13x", and from 1000-fold on "by 15.4 decades".
    """
    return f"{10**decades:.3g}x" if decades < 3 else f"by {decades:.1f} decades"


def _spelled(level: float) -> str:
    """Spell a value of which the logarithm is given.

    Returns:
        "0.031", "332", "1e15.4".
    """
    return f"{10**level:.3g}" if -4 < level < 3 else f"1e{level:.1f}"


def _chosen(profile: pl.DataFrame, quantities: Sequence[str]) -> Iterator[Measured]:
    """Series of some quantities or, where a name ends in a dot, families.

    Yields:
        One series a (quantity, layer).
    """
    if profile.is_empty():
        return
    name = pl.col("quantity")
    families = [name.str.starts_with(one) for one in quantities if one.endswith(".")]
    yield from measured(profile.filter(pl.any_horizontal(name.is_in(list(quantities)), *families)))


def _log10(series: Measured) -> Floats:
    """Logarithm of a positive series; that of a `_log10` quantity is itself.

    Returns:
        log10 of the values, NaN where they are not positive.
    """
    if series.quantity.endswith("_log10"):
        return series.values
    positive = np.isfinite(series.values) & (series.values > 0)
    return np.log10(np.where(positive, series.values, np.nan))
