"""Alarms of gradients: Adam's lag behind them, and norms beyond the bands of a source document."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from hnf_offline.detect.episodes import Episode, alarm, starts, together, told_apart
from hnf_offline.detect.measured import Measured, logged, measured
from hnf_offline.detect.rules import STUDIED, Rules
from hnf_offline.detect.trailing import Floats, trailing_median
from hnf_offline.findings import Alarm

NORM = "grad_norm"


def gradient_alarms(profile: pl.DataFrame, log: pl.DataFrame, rules: Rules = STUDIED) -> tuple[Alarm, ...]:
    """Adam's lag RMS_t > 2.3 (whole model "warning", only layers "info"), gradient norms beyond bands ("info").

    Args:
        profile: the long table.
        log: `grad_norm` where logged.
        rules: the thresholds.

    Returns:
        One alarm an episode; one a checkpoint for all layers whose lag passes the threshold there.
    """
    return (*_lag(profile, rules), *_norms(log, rules))


def _lag(profile: pl.DataFrame, rules: Rules) -> Iterator[Alarm]:
    if profile.is_empty():
        return
    episodes = [
        Episode(series, row, rules.lag, float(series.values[row]))
        for series in measured(profile.filter(pl.col("quantity") == "adam.lag_rms"))
        for row in told_apart(series, starts(series.values > rules.lag), series.values > rules.lag)
    ]
    for group in together(episodes):
        told, worst = group.told, group.worst
        where = f" of {told.series.layer}" if told.series.layer else ""
        text = f"Adam lag{where} is {told.value:.3g} at {told.place}"
        if group.whole is not None and worst is not None:
            more = f" and {group.others} more" if group.others else ""
            text += f" ({worst.value:.3g} in {worst.series.layer}{more})"
        elif group.more:
            text += f" ({group.more})"
        text += ": gradients outgrew the second moment."
        severity = "warning" if group.whole is not None else "info"
        yield alarm(told, "lag", severity, text, "Lower beta2 or clip the update by its RMS.")


def _norms(log: pl.DataFrame, rules: Rules) -> Iterator[Alarm]:
    """Gradient norms above the bands, in runs whose own norm is normally below them.

    An episode begins at the first norm above the lower band, is told once, and ends when the norm was below
    that band for `norm_quiet` logged rows in a row.

    Yields:
        Alarms of rule "norm-critical" where the first norm is that high, else "norm-high".
    """
    steps, norms = logged(log, NORM)
    if not steps.size:
        return
    series = Measured(NORM, "", -1, steps, norms)
    usual = _usual(norms, rules.norm_rows)
    finite = np.isfinite(norms)
    high = finite & (norms > rules.norm_high) & (usual < rules.norm_high)
    for row in starts(high, finite & (norms <= rules.norm_high), rules.norm_quiet):
        critical = norms[row] > rules.norm_critical
        word, threshold = ("critical", rules.norm_critical) if critical else ("high", rules.norm_high)
        text = f"gradient norm is {norms[row]:.3g} at step {steps[row]}, normally {usual[row]:.2g}: {word} "
        text += f"for a clipped run (above {threshold:g})."
        yield alarm(Episode(series, row, threshold, float(norms[row])), f"norm-{word}", "info", text)


def _usual(norms: Floats, rows: int) -> Floats:
    """Median of the last finite norms before each row.

    Returns:
        One value a row, NaN until ten are known.
    """
    finite = np.isfinite(norms)
    known = trailing_median(np.append(norms[finite], 0.0), rows, minimum=10)
    return np.asarray(known[np.cumsum(finite) - finite])
