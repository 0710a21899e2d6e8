"""Exponential growth: how fast a quantity doubles, and when it would cross a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from hnf_offline.detect.cusum import finite_series
from hnf_offline.detect.trailing import Floats
from hnf_offline.findings import Growth

POINTS = 5  # checkpoints of the window where they are dense
SPARSE_GAP = 16  # above this many steps between checkpoints the last two decide
STRAIGHT = 0.8  # R^2 of log value against step
FACTOR = 1.3  # a stretch has to grow by this much to be told


@dataclass(frozen=True, slots=True)
class GrowthFit:
    """Log-linear least squares: log value = level + slope (step - last step).

    Attributes:
        slope: growth of the logarithm a step.
        low: lower end of the 95 % interval of the slope.
        high: upper end.
        level: fitted logarithm at the last step.
        r2: share of the variance of the logarithm explained.
        last_step: the last step used.
        points: values used.
    """

    slope: float
    low: float
    high: float
    level: float
    r2: float
    last_step: float
    points: int

    def crossing(self, threshold: float) -> float | None:
        """Say when the fitted line reaches a threshold.

        Returns:
            The step, None where it does not grow or is already past it.
        """
        if self.slope <= 0 or threshold <= 0 or self.level >= np.log(threshold):
            return None
        return float(self.last_step + (np.log(threshold) - self.level) / self.slope)


def fit_growth(
    steps: Sequence[float] | NDArray[np.int64], values: Sequence[float] | Floats
) -> GrowthFit | None:
    """Fit exponential growth, with an interval of the slope that allows for AR(1) residuals.

    The standard error is inflated by sqrt((1 + rho) / (1 - rho)), rho the lag-one correlation of the
    residuals plus its small-sample bias (1 + 4 rho) / n, within [0, 0.9]; Student's t with n - 2 degrees of
    freedom.

    Returns:
        The fit; None with fewer than two positive finite values at different steps. With two values the
        interval is unbounded.
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    keep = np.isfinite(y) & (y > 0)
    x, y = x[keep], np.log(y[keep])
    if x.size < 2 or np.ptp(x) == 0:
        return None
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread
    residual = y - y.mean() - slope * centred
    total = float(np.sum((y - y.mean()) ** 2))
    error = float(residual @ residual)
    r2 = 1.0 if total == 0 else 1 - error / total
    if x.size == 2:
        half = np.inf
    else:
        rho = float(residual[1:] @ residual[:-1]) / error if error > 0 else 0.0
        rho = min(max(rho + (1 + 4 * max(rho, 0.0)) / x.size, 0.0), 0.9)
        deviation = np.sqrt(error / (x.size - 2) / spread * (1 + rho) / (1 - rho))
        half = float(student.ppf(0.975, x.size - 2)) * deviation
    level = float(y.mean() + slope * (x[-1] - x.mean()))
    return GrowthFit(slope, slope - half, slope + half, level, r2, float(x[-1]), int(x.size))


def growth(
    steps: Sequence[int] | NDArray[np.int64],
    values: Sequence[float] | Floats,
    quantity: str,
    layer: str,
    threshold: float | None = None,
    *,
    points: int = POINTS,
) -> tuple[Growth, ...]:
    """Maximal stretches of exponential growth.

    A stretch is a run of trailing windows of `points` values whose slope is positive beyond its interval
    and whose R^2 exceeds 0.8, over which the fit grows by at least 1.3. The doubling time is ln 2 / slope
    of the whole stretch. The projected crossing uses the last window of the stretch, so nothing after it.

    Returns:
        The stretches; `high` is infinite where the interval of the slope reaches zero.
    """
    where, series = finite_series(steps, values)
    stretches: list[tuple[int, int]] = []
    for end in range(points, where.size + 1):
        fit = fit_growth(where[end - points : end], series[end - points : end])
        if fit is None or fit.points < points or fit.r2 <= STRAIGHT or fit.low <= 0:
            continue
        if stretches and end - 1 == stretches[-1][1]:
            stretches[-1] = (stretches[-1][0], end)
        else:
            stretches.append((end - points, end))
    found = []
    for begin, end in stretches:
        whole = fit_growth(where[begin:end], series[begin:end])
        latest = fit_growth(where[end - points : end], series[end - points : end])
        assert whole is not None
        assert latest is not None
        if whole.slope * (where[end - 1] - where[begin]) < np.log(FACTOR):
            continue
        found.append(
            Growth(
                quantity=quantity,
                layer=layer,
                start=int(where[begin]),
                end=int(where[end - 1]),
                doubling_steps=float(np.log(2) / whole.slope),
                low=float(np.log(2) / whole.high),
                high=float(np.log(2) / whole.low) if whole.low > 0 else float("inf"),
                r2=whole.r2,
                threshold=threshold,
                projected_step=None if threshold is None else latest.crossing(threshold),
            )
        )
    return tuple(found)


def forecast(
    steps: Sequence[int] | NDArray[np.int64],
    values: Sequence[float] | Floats,
    at: float,
    threshold: float,
    horizon: float,
    *,
    straight: float = STRAIGHT,
) -> float | None:
    """Step at which the growth seen until `at` would reach a threshold.

    Log-linear through the last five checkpoints (four while there are no more), which must lie on a line with
    R^2 above `straight`; through the last two where checkpoints are more than 16 steps apart.

    Returns:
        The step; None where there is no growth, the threshold is reached already, or the crossing
        lies beyond `at + horizon`.
    """
    where, series = finite_series(steps, values)
    seen = where <= at
    where, series = where[seen], series[seen]
    if where.size < 2 or series[-1] >= threshold or series[-1] <= series[-2]:
        return None
    gap = float(np.median(np.diff(where[-POINTS:])))
    sparse = gap > SPARSE_GAP
    if not sparse and where.size < POINTS - 1:
        return None
    points = 2 if sparse else POINTS
    fit = fit_growth(where[-points:], series[-points:])
    if fit is None or (not sparse and fit.r2 <= straight):
        return None
    crossing = fit.crossing(threshold)
    if crossing is None:
        crossing = float(where[-1]) if fit.slope > 0 else None
    return crossing if crossing is not None and crossing <= at + horizon else None
