"""What chance does in an autocorrelated series without change: the null of CUSUM and PELT.

Each detector takes out the correlation it estimates; what the estimate leaves is calibrated on AR(1) draws
that go through the whole detector, and the strictest threshold over all correlations up to `WORST` is used.
A block bootstrap of ten to sixty checkpoints cannot do this: it breaks the correlation at every joint, and
cannot show a wander longer than its blocks.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter

from hnf_offline.detect.trailing import Floats

#: Correlations of the draws; the stated rate holds up to the last of them.
NULLS = (0.0, 0.5, 0.8)
WORST = NULLS[-1]
#: Draws for each of them.
PATHS = 2000
#: Waves of half a period, one, one and a half, ... within a series: more would see less of a slow wander.
SLOW = 6


def to_scale(values: Floats) -> Floats:
    """Take logarithms where all values are positive, and leave them alone elsewhere.

    Returns:
        The transformed values.
    """
    return np.asarray(np.log(values)) if values.size and values.min() > 0 else values


def ar1_paths(phi: float, length: int, paths: int, seed: int) -> Floats:
    """Draw stationary AR(1) paths with unit variance: x_t = phi x_{t-1} + sqrt(1 - phi^2) e_t.

    The draws of the first steps do not depend on `length`.

    Returns:
        An array (paths, length).
    """
    noise = np.random.default_rng(seed).standard_normal((length, paths)).T
    drive = noise * np.sqrt(1 - phi * phi)
    drive[:, 0] = noise[:, 0]
    return np.asarray(lfilter([1.0], [1.0, -phi], drive, axis=1))


def lag_one(values: Floats) -> Floats:
    """Lag-one autocorrelation of each row about its mean, over (..., length).

    Returns:
        One value a row, 0 for a constant row.
    """
    centred = values - values.mean(axis=-1, keepdims=True)
    power = np.sum(centred * centred, axis=-1)
    product = np.sum(centred[..., 1:] * centred[..., :-1], axis=-1)
    return np.asarray(np.where(power > 0, product / np.where(power > 0, power, 1.0), 0.0))


def split_gains(values: Floats) -> Floats:
    """By how much each single split lowers the squared error: k (n-k) / n (mean left - mean right)^2.

    Returns:
        (..., length - 1) gains, for splits after 1, 2, ... rows.
    """
    length = values.shape[-1]
    count = np.arange(1, length)
    sums = np.cumsum(values - values.mean(axis=-1, keepdims=True), axis=-1)[..., :-1]
    return np.asarray(sums * sums * length / (count * (length - count)))


def without_split(values: Floats) -> Floats:
    """Each row minus the means of its two sides at its best single split: residuals free of one shift.

    Returns:
        Residuals of the same shape.
    """
    best = np.argmax(split_gains(values), axis=-1)[..., None] + 1
    length = values.shape[-1]
    sums = np.cumsum(values, axis=-1)
    at_best = np.take_along_axis(sums, best - 1, axis=-1)
    right_mean = (sums[..., -1:] - at_best) / (length - best)
    return np.asarray(values - np.where(np.arange(length) < best, at_best / best, right_mean))


def long_run_variance(values: Floats) -> Floats:
    """Variance that counts for a mean: residual variance (1 + phi) / (1 - phi), free of a few shifts.

    The best split is taken out three times (twice below 48 rows), so that shifts do not pass for correlation.

    Returns:
        One value a row.
    """
    residual = values
    for _ in range(2 if values.shape[-1] < 48 else 3):
        residual = without_split(residual)
    phi = np.clip(lag_one(residual), 0.0, 0.97)
    return np.asarray(np.mean(residual * residual, axis=-1) * (1 + phi) / (1 - phi))


def effective_rows(values: Floats) -> float:
    """Number of independent rows that would give the mean of correlated ones the same error: n / tau.

    tau = 1 + 2 sum of the autocorrelations, summed in pairs of lags while the pairs are positive and do not grow
    (Geyer 1992, Stat. Sci. 7(4), section 3.3), at least that of an AR(1) process of the same lag-one correlation.

    Args:
        values: one stretch of a stationary series, (n,).

    Returns:
        Between 1 and n; n for a constant series.
    """
    length = values.size
    centred = values - values.mean() if length else values
    if length < 4 or not float(np.sum(centred * centred)) > 0:
        return float(length)
    size = 1 << (2 * length - 1).bit_length()
    power = np.abs(np.fft.rfft(centred, size)) ** 2
    covariance = np.fft.irfft(power, size)[: length // 2]
    correlation = covariance / covariance[0]
    pairs = correlation[: correlation.size // 2 * 2].reshape(-1, 2).sum(axis=1)
    if not (pairs > 0).all():
        pairs = pairs[: int(np.argmin(pairs > 0))]
    tau = 2.0 * float(np.minimum.accumulate(pairs).sum()) - 1.0 if pairs.size else 1.0
    # The estimate is biased towards zero by about (1 + 4 phi) / n (Marriott and Pope 1954).
    phi = float(correlation[1])
    phi = min(max(phi + (1 + 4 * phi) / length, 0.0), 0.999)
    return length / min(max(tau, (1 + phi) / (1 - phi), 1.0), float(length))


def effective_rows_of_slow_waves(values: Floats) -> float:
    """Number of independent rows by the slowest waves of a series: its variance over their mean square, times n.

    The waves are the `SLOW` lowest cosines, which all have the mean's own variance where the correlation lasts much
    shorter than the series; a slow wander below a larger noise shows in them long before it does in
    autocorrelations (Lazarus, Lewis, Stock & Watson 2018, J. Bus. Econ. Stat. 36(4), equal-weighted cosines).

    Args:
        values: one stretch of a series, (n,), n of more than `SLOW`.

    Returns:
        Above 0, more than n where the waves are weak; n for a constant series.
    """
    length = values.size
    centred = values - values.mean()
    power = float(centred @ centred) / (length - 1)
    places = np.pi * (np.arange(length) + 0.5) / length
    waves = np.sqrt(2 / length) * np.cos(np.outer(np.arange(1, SLOW + 1), places)) @ centred
    of_waves = float(waves @ waves) / SLOW
    return length * power / of_waves if of_waves > 0 else float(length)
