"""Alarms of single quantities: Adam's lag, bands, rapid increases, overflow to come, non-finite values.

What the source document proposed as warnings and fires in healthy runs too is of severity "info" here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import polars as pl

from hnf_offline.detect.growth import fit_growth
from hnf_offline.detect.measured import Measured, logged, measured
from hnf_offline.detect.rules import STUDIED, Rules
from hnf_offline.detect.trailing import Flags, Floats
from hnf_offline.findings import Alarm

#: Families whose positive quantities are curvatures or estimates of them.
CURVATURES = ("hessian.", "proxy.", "map.", "norm.inverse_sigma", "attention.logit_max")
NOT_GROWING = ("hessian.unstable_mass",)  # shares
STABILITY = "hessian.stability_ratio"  # has its own rules
NONFINITE_ROWS = 3  # scaled fp16 skips single steps: only so many in a row are a finding


def gradient_alarms(profile: pl.DataFrame, log: pl.DataFrame, rules: Rules = STUDIED) -> tuple[Alarm, ...]:
    """Adam's lag RMS_t > 2.3 (whole model "warning", a layer "info"), gradient norms beyond bands.

    Args:
        profile: the long table.
        log: `grad_norm` where logged.
        rules: the thresholds.

    Returns:
        One alarm an episode.
    """
    alarms: list[Alarm] = []
    for series in measured(_only(profile, "adam.lag_rms")):
        where = f" of {series.layer}" if series.layer else ""
        for row in _episodes(series.values > rules.lag):
            value = float(series.values[row])
            text = f"Adam lag{where} is {value:.3g} at checkpoint {series.steps[row]}: "
            text += "gradients outgrew the second moment."
            severity = "info" if series.layer else "warning"
            alarms.append(
                _alarm(
                    series,
                    row,
                    rules.lag,
                    "lag",
                    severity,
                    text,
                    "Lower beta2 or clip the update by its RMS.",
                )
            )
    steps, norms = logged(log, "grad_norm")
    norm = Measured("grad_norm", "", -1, steps, norms)
    for threshold, word in ((rules.norm_high, "high"), (rules.norm_critical, "critical")):
        above = np.isfinite(norms) & (norms > threshold)
        for row in _episodes(above & _rarely(above)):
            text = f"gradient norm is {norms[row]:.3g} at step {steps[row]}, {word} for a clipped run."
            alarms.append(_alarm(norm, row, threshold, f"norm-{word}", "info", text))
    return tuple(alarms)


def band_alarms(profile: pl.DataFrame, rules: Rules = STUDIED) -> tuple[Alarm, ...]:
    """Attention logits above 1e3 (warning) and 1e4 (danger); component estimates above 1e6 and 1e9 (info).

    The estimates (`proxy.*_log10`) are bounds by the formulas of the source document, and pass its bands in
    healthy models.

    Returns:
        One alarm an episode in a band.
    """
    alarms: list[Alarm] = []
    for series in measured(_only(profile, "attention.logit_max")):
        for threshold, severity in ((rules.logit_warning, "warning"), (rules.logit_danger, "danger")):
            for row in _episodes(np.isfinite(series.values) & (series.values > threshold)):
                value = float(series.values[row])
                text = f"largest attention logit of {series.layer} is {value:.3g} "
                text += f"at checkpoint {series.steps[row]}."
                alarms.append(
                    _alarm(
                        series,
                        row,
                        threshold,
                        f"band-{severity}",
                        severity,
                        text,
                        "Normalise queries and keys.",
                    )
                )
    for series in measured(_starting(profile, "proxy.")):
        for threshold, word in ((rules.band_warning, "warning"), (rules.band_danger, "danger")):
            for row in _episodes(np.isfinite(series.values) & (series.values >= threshold)):
                value = float(series.values[row])
                text = f"{series.quantity} of {series.layer or 'the model'} is in its {word} band: "
                text += f"1e{value:.1f} at checkpoint "
                alarms.append(
                    _alarm(series, row, threshold, f"band-{word}", "info", f"{text}{series.steps[row]}.")
                )
    return tuple(alarms)


def increase_alarms(profile: pl.DataFrame, rules: Rules = STUDIED) -> tuple[Alarm, ...]:
    """Rapid increase: ten times within ten checkpoints, to a new high ("warning" or "info").

    Returns:
        One alarm an episode, of rule "rapid-increase".
    """
    alarms: list[Alarm] = []
    window = rules.increase_checkpoints
    for series in _curvatures(profile):
        level = _log10(series)
        if level.size < window:
            continue
        before = np.full(level.size, np.nan)
        lowest = np.lib.stride_tricks.sliding_window_view(level, window).min(axis=1)
        before[window - 1 :] = lowest
        highest = np.maximum.accumulate(np.where(np.isfinite(level), level, -np.inf))
        earlier = np.concatenate([[np.inf], highest[:-1]])
        for row in _episodes((level - before > np.log10(rules.increase)) & (level > earlier)):
            times = 10 ** min(level[row] - before[row], 300.0)
            text = f"{series.quantity} of {series.layer or 'the model'} grew {times:.3g}x "
            text += f"within {window} checkpoints, to a new high at checkpoint {series.steps[row]}."
            noted = series.layer or series.quantity.startswith("proxy.") or series.quantity == STABILITY
            severity = "info" if noted else "warning"
            threshold = float(before[row] + np.log10(rules.increase))
            threshold = threshold if series.quantity.endswith("_log10") else 10.0**threshold
            alarms.append(_alarm(series, row, threshold, "rapid-increase", severity, text))
    return tuple(alarms)


def overflow_alarms(profile: pl.DataFrame, rules: Rules = STUDIED) -> tuple[Alarm, ...]:
    """Growth that would pass 1e15 within 100 steps: the source document's forecast, on a straight fit.

    Returns:
        One alarm an episode, of rule "overflow-forecast".
    """
    alarms: list[Alarm] = []
    points = rules.overflow_checkpoints
    for series in _curvatures(profile):
        level = _log10(series)
        flags = np.zeros(level.size, dtype=np.bool_)
        reached = np.full(level.size, np.nan)
        for row in range(points - 1, level.size):
            part = slice(row - points + 1, row + 1)
            if level[row] - level[row - points + 1] <= 0 or level[row] > rules.overflow_log10:
                continue
            fit = fit_growth(series.steps[part], np.exp(np.clip(level[part], -300, 300)))
            if fit is not None and fit.r2 > rules.straight and fit.slope > 0:
                reached[row] = level[row] + fit.slope * rules.overflow_steps
                flags[row] = reached[row] > rules.overflow_log10
        for row in _episodes(flags):
            text = (
                f"{series.quantity} of {series.layer or 'the model'} would reach 1e{reached[row]:.0f} within "
            )
            text += f"{rules.overflow_steps} steps of checkpoint {series.steps[row]}."
            severity = "info" if series.quantity.startswith("proxy.") else "warning"
            alarms.append(
                _alarm(series, row, 10.0**rules.overflow_log10, "overflow-forecast", severity, text)
            )
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
        text = f"{quantity} of {series.layer or 'the model'}{more} is not finite at checkpoint {step}."
        if quantity == "weight.nonfinite":
            share = float(series.values[row])
            text = f"{share:.2g} of the weights of {series.layer or 'the model'}{more} "
            text += f"are not finite at checkpoint {step}."
        severity = "info" if quantity.startswith("proxy.") else "danger"
        action = "" if severity == "info" else f"Go back to a checkpoint before {step}."
        alarms.append(_alarm(series, row, 0.0, "nonfinite", severity, text, action))
    steps, norms = logged(log, "grad_norm")
    if steps.size >= NONFINITE_ROWS:
        broken = np.lib.stride_tricks.sliding_window_view(~np.isfinite(norms), NONFINITE_ROWS).all(axis=1)
        for row in _episodes(np.concatenate([np.zeros(NONFINITE_ROWS - 1, dtype=np.bool_), broken]))[:1]:
            text = (
                f"gradient norm has not been finite for {NONFINITE_ROWS} logged steps at step {steps[row]}."
            )
            norm = Measured("grad_norm", "", -1, steps, norms)
            alarms.append(_alarm(norm, row, 0.0, "nonfinite", "danger", text))
    return tuple(alarms)


def _alarm(
    series: Measured, row: int, threshold: float, rule: str, severity: str, text: str, action: str = ""
) -> Alarm:
    """An alarm at one row of a series, known at that row's step.

    Returns:
        The alarm.
    """
    step, value = int(series.steps[row]), float(series.values[row])
    return Alarm(step, step, series.quantity, series.layer, value, threshold, rule, severity, text, action)


def _episodes(flags: Flags) -> list[int]:
    """First row of each run of flags.

    Returns:
        Row numbers.
    """
    return [int(row) for row in np.flatnonzero(flags & ~np.concatenate([[False], flags[:-1]]))]


def _rarely(above: Flags) -> Flags:
    """Whether at least ten earlier rows are known and less than half of them were above too.

    Returns:
        One flag a row; where it is False, the band does not fit the run.
    """
    earlier = np.cumsum(above, dtype=np.int64) - above
    count = np.arange(above.size)
    return np.asarray((count >= 10) & (2 * earlier < count))


def _only(profile: pl.DataFrame, quantity: str) -> pl.DataFrame:
    """Rows of one quantity.

    Returns:
        A part of the table.
    """
    return profile if profile.is_empty() else profile.filter(pl.col("quantity") == quantity)


def _starting(profile: pl.DataFrame, prefix: str) -> pl.DataFrame:
    """Rows of the quantities of one family.

    Returns:
        A part of the table.
    """
    return profile if profile.is_empty() else profile.filter(pl.col("quantity").str.starts_with(prefix))


def _curvatures(profile: pl.DataFrame) -> Iterator[Measured]:
    """Series of curvatures and their estimates.

    Yields:
        One series a (quantity, layer).
    """
    if profile.is_empty():
        return
    chosen: Callable[[pl.Expr], pl.Expr] = lambda name: pl.any_horizontal(  # noqa: E731
        *[name.str.starts_with(prefix) for prefix in CURVATURES]
    )
    name = pl.col("quantity")
    yield from measured(profile.filter(chosen(name) & ~name.is_in(NOT_GROWING)))


def _log10(series: Measured) -> Floats:
    """Logarithm of a positive series; that of a `_log10` quantity is itself.

    Returns:
        log10 of the values, NaN where they are not positive.
    """
    if series.quantity.endswith("_log10"):
        return series.values
    positive = np.isfinite(series.values) & (series.values > 0)
    return np.log10(np.where(positive, series.values, np.nan))
