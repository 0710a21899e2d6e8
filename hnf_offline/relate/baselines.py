"""The rivals on the log: causal z-scores, spreads and slopes that need no checkpoint."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from hnf_offline.relate.series import Values


def trailing_z(values: Values, window: int = 128, minimum: int = 16) -> Values:
    """Standardise each value by the mean and standard deviation of the `window` rows before it.

    Args:
        values: the series; a value that is not finite never enters the statistics of later rows.
        window: rows looked back.
        minimum: rows that must be known before a z is given.

    Returns:
        (x_t - mean) / standard deviation, NaN until `minimum` rows are known, +inf for x = +inf.
    """
    finite = np.where(np.isfinite(values), values, np.nan)
    padded = np.concatenate([np.full(window, np.nan), finite])[:-1] if values.size else finite
    if not values.size:
        return values.copy()
    past = sliding_window_view(padded, window)
    known = np.isfinite(past).sum(axis=1)
    total = np.nansum(past, axis=1)
    mean = np.divide(total, known, out=np.full(values.shape, np.nan), where=known >= minimum)
    squares = np.nansum((past - mean[:, None]) ** 2, axis=1)
    spread = np.sqrt(np.divide(squares, known, out=np.full(values.shape, np.nan), where=known >= minimum))
    with np.errstate(invalid="ignore"):
        return np.asarray((values - mean) / np.maximum(spread, 1e-12))


def exponential_z(values: Values, smoothing: float = 0.97, warm_up: int = 25) -> Values:
    """Standardise each value by the exponential mean and variance of those before it, as ZClip does.

    Returns:
        z_t = (g_t - mu) / sigma with mu <- a mu + (1-a) g and sigma^2 <- a sigma^2 + (1-a) (g - mu)^2;
        NaN during the warm-up.

    Source: ZClip (arXiv 2504.02507), a = .97.
    """
    result = np.full(values.shape, np.nan)
    seen: list[float] = []
    mean = variance = 0.0
    for k, value in enumerate(values):
        if len(seen) >= warm_up:
            result[k] = (value - mean) / max(variance**0.5, 1e-12)
        if not np.isfinite(value):
            continue
        seen.append(float(value)) if len(seen) <= warm_up else None
        if len(seen) == warm_up:
            mean, variance = float(np.mean(seen)), float(np.var(seen))
            seen.append(float(value))
        elif len(seen) > warm_up:
            variance = smoothing * variance + (1 - smoothing) * (float(value) - mean) ** 2
            mean = smoothing * mean + (1 - smoothing) * float(value)
    return result


def rolling_spread(values: Values, window: int = 32) -> Values:
    """Standard deviation of the last `window` rows, this one included.

    Returns:
        The spread, NaN until the window is full, +inf where a value in it is not finite.
    """
    result = np.full(values.shape, np.nan)
    if values.size >= window:
        with np.errstate(invalid="ignore"):
            spread = sliding_window_view(values, window).std(axis=1)
        result[window - 1 :] = np.where(np.isfinite(spread), spread, np.inf)
    return result


def rolling_slope_t(values: Values, window: int = 16) -> Values:
    """t-statistic of the least-squares slope through the last `window` rows.

    Returns:
        slope / standard error, NaN until the window is full and where a value in it is not finite.
    """
    result = np.full(values.shape, np.nan)
    if values.size >= window:
        position = np.arange(window) - (window - 1) / 2
        squares = float((position**2).sum())
        views = sliding_window_view(np.where(np.isfinite(values), values, np.nan), window)
        slope = views @ position / squares
        rest = views - views.mean(axis=1, keepdims=True) - slope[:, None] * position
        error = np.sqrt((rest**2).sum(axis=1) / (window - 2) / squares)
        result[window - 1 :] = slope / np.maximum(error, 1e-12)
    return result
