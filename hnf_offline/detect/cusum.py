"""CUSUM: has the level of a series moved away from what it was? Causal, for autocorrelated series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hnf_offline.detect.autocorrelation import NULLS, PATHS, ar1_paths, to_scale
from hnf_offline.detect.trailing import Floats
from hnf_offline.findings import ChangePoint

BASELINE = 12  # rows before the first sum
DRIFT = 0.5  # allowance a row
CLIP = 4.0  # one wild value counts as this many standard deviations
#: Shares of the false-alarm rate for epochs of doubling length; most of it where checkpoint series are.
SHARES = (0.2, 0.35, 0.25, 0.1, 0.06, 0.04)
DRAWN_EPOCHS = len(SHARES)  # thresholds are drawn up to 12 * (2^6 - 1) = 756 rows, and extended from there
#: Thresholds at 5 % with the baseline and the drift above: quantiles of 40 000 AR(1) draws with phi = 0.8, which is
#: the strictest null in every epoch. Others are drawn when asked for.
TABULATED_RATE = 0.05
THRESHOLDS = (10.15, 11.16, 11.06, 11.48, 11.80, 12.08)


@dataclass(frozen=True, slots=True)
class CusumResult:
    """A two-sided CUSUM over a series.

    Attributes:
        up: S+_t = max(0, S+_{t-1} + e_t - drift), 0 over the baseline.
        down: the same of -e_t.
        threshold: what either has to exceed, row by row; infinite over the baseline.
        alarms: rows at which one first exceeded it; the CUSUM then starts afresh behind that row.
        directions: "up" or "down", one an alarm.
    """

    up: Floats
    down: Floats
    threshold: Floats
    alarms: tuple[int, ...]
    directions: tuple[str, ...]


def cusum(
    values: Sequence[float] | Floats,
    *,
    drift: float = DRIFT,
    threshold: float | None = None,
    false_alarm_rate: float = 0.05,
    seed: int = 0,
    baseline: int = BASELINE,
) -> CusumResult:
    """Sum up how far a series departs from what it was, beyond a drift.

    What is summed is the surprise of each row: x_t minus its prediction m + phi (x_{t-1} - m), over the
    root mean square of the earlier surprises, with mean m and lag-one correlation phi of all rows before t.
    The first `baseline` rows are not summed. The threshold comes from AR(1) draws, phi up to 0.8, that go
    through the same sums; it grows with time so that all rows together, however many, alarm with at most
    the stated probability. It never looks ahead.

    Args:
        values: the series, finite; logarithms are taken for as long as all values are positive.
        drift: allowance a row, in standard deviations of the surprise.
        threshold: a fixed threshold instead of the calibrated one.
        false_alarm_rate: probability of any alarm in a series without change.
        seed: seed of the draws, for what is not tabulated.
        baseline: rows before the first sum.

    Returns:
        The statistics and the alarms. Source: Page 1954, Biometrika 41; recursive residuals: Brown, Durbin
        & Evans 1975, J. R. Stat. Soc. B 37.
    """
    series = np.asarray(values, dtype=np.float64)
    up, down = np.zeros(series.size), np.zeros(series.size)
    limits = np.full(series.size, np.inf)
    alarms: list[int] = []
    directions: list[str] = []
    start = 0
    while series.size - start > baseline:
        plus, minus = _both_scales(series[start:], baseline, drift)
        limit = np.full(plus.size, threshold if threshold is not None else np.nan)
        if threshold is None:
            limit = _limits(baseline, limit.size, drift, false_alarm_rate, seed)
        over = np.flatnonzero(np.maximum(plus, minus) > limit)
        stop = int(over[0]) + 1 if over.size else limit.size
        where = slice(start + baseline, start + baseline + stop)
        up[where], down[where], limits[where] = plus[:stop], minus[:stop], limit[:stop]
        if not over.size:
            break
        start += baseline + stop
        alarms.append(start - 1)
        directions.append("up" if plus[stop - 1] >= minus[stop - 1] else "down")
    return CusumResult(up, down, limits, tuple(alarms), tuple(directions))


def change_points_cusum(
    steps: Sequence[int] | NDArray[np.int64],
    values: Sequence[float] | Floats,
    quantity: str,
    layer: str,
    *,
    drift: float = DRIFT,
    false_alarm_rate: float = 0.05,
    seed: int = 0,
    baseline: int = BASELINE,
) -> tuple[ChangePoint, ...]:
    """Level shifts of one series, each at the step at which a live CUSUM would have said so.

    Values that are not finite are left out.

    Returns:
        Change-points with `causal` True.
    """
    where, series = finite_series(steps, values)
    found = cusum(series, drift=drift, false_alarm_rate=false_alarm_rate, seed=seed, baseline=baseline)
    return tuple(
        ChangePoint(quantity, layer, int(where[row]), "cusum", direction, True)
        for row, direction in zip(found.alarms, found.directions, strict=True)
    )


def finite_series(
    steps: Sequence[float] | NDArray[np.int64], values: Sequence[float] | Floats
) -> tuple[NDArray[np.int64], Floats]:
    """Leave out values that are not finite.

    Returns:
        Steps and values.
    """
    where = np.asarray(steps, dtype=np.int64)
    series = np.asarray(values, dtype=np.float64)
    keep = np.isfinite(series)
    return where[keep], series[keep]


def _both_scales(series: Floats, baseline: int, drift: float) -> tuple[Floats, Floats]:
    """CUSUMs of the logarithm up to the first value that has none, and of the value itself from there.

    Returns:
        S+ and S- of the rows after the baseline.
    """
    positive = int(np.argmax(np.append(series, 0.0) <= 0))
    parts = [(series, max(positive - baseline, 0), series.size)] if positive < series.size else []
    if positive > baseline:
        parts.insert(0, (to_scale(series[:positive]), 0, positive - baseline))
    plus, minus = np.zeros(series.size - baseline), np.zeros(series.size - baseline)
    for scaled, first, stop in parts:
        up, down = _sums(_surprise(scaled[None, :], baseline), drift)
        plus[first:stop], minus[first:stop] = up[0, first:], down[0, first:]
    return plus, minus


def _surprise(paths: Floats, baseline: int) -> Floats:
    """One-step prediction errors of each row of `paths`, over the root mean square of the earlier ones.

    After the baseline a value counts in the estimates only as far as `CLIP` standard deviations from its
    prediction, so that a new level cannot pass itself off as spread or correlation.

    Returns:
        One value a step after the baseline, clipped.
    """
    paths = paths - np.mean(paths[:, :baseline], axis=1, keepdims=True)
    head = paths[:, :baseline]
    total, square = head.sum(axis=1), np.sum(head * head, axis=1)
    product = np.sum(head[:, 1:] * head[:, :-1], axis=1)
    previous = head[:, -1]
    phi = _correlation(total, square, product, baseline)
    errors = head[:, 1:] - phi[:, None] * head[:, :-1]
    squared_errors = np.sum(errors * errors, axis=1)
    surprise = np.empty((len(paths), paths.shape[1] - baseline))
    for row in range(baseline, paths.shape[1]):
        mean = total / row
        predicted = mean + phi * (previous - mean)
        scale = np.sqrt(np.maximum(squared_errors / (row - 2), 1e-24))
        surprise[:, row - baseline] = np.clip((paths[:, row] - predicted) / scale, -CLIP, CLIP)
        error = surprise[:, row - baseline] * scale
        value = predicted + error
        product = product + value * previous
        total, square = total + value, square + value * value
        squared_errors = squared_errors + error * error
        previous = value
        phi = _correlation(total, square, product, row + 1)
    return surprise


def _correlation(total: Floats, square: Floats, product: Floats, rows: int) -> Floats:
    """Lag-one correlation from sums, within [0, 0.95].

    Returns:
        One value a path, 0 for a constant one.
    """
    mean = total / rows
    variance = square / rows - mean * mean
    covariance = product / (rows - 1) - mean * mean
    usable = variance > 1e-24
    return np.asarray(np.clip(np.where(usable, covariance / np.where(usable, variance, 1.0), 0.0), 0.0, 0.95))


def _sums(surprise: Floats, drift: float) -> tuple[Floats, Floats]:
    """Both one-sided CUSUMs of each row.

    Returns:
        S+ and S-.
    """
    both = []
    for sign in (1.0, -1.0):
        walk = np.cumsum(sign * surprise - drift, axis=1)
        both.append(walk - np.minimum(np.minimum.accumulate(walk, axis=1), 0.0))
    return both[0], both[1]


def _limits(baseline: int, rows: int, drift: float, rate: float, seed: int) -> Floats:
    """Thresholds for the rows after the baseline: one for each epoch of doubling length.

    Returns:
        One threshold a row.
    """
    limits = np.empty(rows)
    done, epoch = 0, 1
    while done < rows:
        stop = min(rows, baseline * (2**epoch - 1))
        limits[done:stop] = _epoch_limit(baseline, epoch, drift, rate, seed)
        done, epoch = stop, epoch + 1
    return limits


def _epoch_limit(baseline: int, epoch: int, drift: float, rate: float, seed: int) -> float:
    """Threshold of one epoch, from the table or the draws; extended past the last of them.

    Returns:
        The threshold.
    """
    if epoch > DRAWN_EPOCHS:
        last = _epoch_limit(baseline, DRAWN_EPOCHS, drift, rate, seed)
        rise = last - _epoch_limit(baseline, DRAWN_EPOCHS - 1, drift, rate, seed)
        return last + (epoch - DRAWN_EPOCHS) * max(rise, 0.0)
    if (baseline, drift, rate) == (BASELINE, DRIFT, TABULATED_RATE):
        return THRESHOLDS[epoch - 1]
    return drawn_threshold(baseline, epoch, drift, rate, seed)


@lru_cache(maxsize=512)
def drawn_threshold(baseline: int, epoch: int, drift: float, rate: float, seed: int) -> float:
    """Draw the threshold of one epoch: the strictest quantile over the nulls.

    Returns:
        The threshold.
    """
    share = rate * SHARES[epoch - 1]
    maxima = [_epoch_maxima(phi, baseline, epoch, drift, seed) for phi in NULLS]
    return max(float(np.quantile(largest, 1 - share, method="higher")) for largest in maxima)


@lru_cache(maxsize=128)
def _epoch_maxima(phi: float, baseline: int, epoch: int, drift: float, seed: int) -> Floats:
    """Largest CUSUM of each null path within an epoch.

    Returns:
        One value a path.
    """
    start, stop = baseline * (2 ** (epoch - 1) - 1), baseline * (2**epoch - 1)
    paths = ar1_paths(phi, baseline + stop, 2 * PATHS, seed)
    plus, minus = _sums(_surprise(paths, baseline), drift)
    return np.asarray(np.maximum(plus, minus)[:, start:].max(axis=1))
