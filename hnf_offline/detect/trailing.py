"""Causal rolling statistics: the value at t is made of the rows before t, never of t or later ones."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Rows = NDArray[np.intp]

#: A standard normal has its median absolute deviation at 1 / 1.4826.
SIGMA_PER_MAD = 1.4826
#: Windows are gathered this many rows at a time, so that memory stays below about 100 MB.
CHUNK = 100_000
#: Rows between the windows that bound a median.
STRIDE = 10


def trailing_median(values: Floats, window: int, minimum: int = 1) -> Floats:
    """Median of the `window` rows before each row.

    Returns:
        One value a row, NaN where fewer than `minimum` rows came before.
    """
    rolling = pl.Series(values).rolling_median(window, min_samples=minimum)
    return _before(rolling)


def trailing_minimum(values: Floats, window: int, minimum: int = 1) -> Floats:
    """Smallest of the `window` rows before each row.

    Returns:
        One value a row, NaN where fewer than `minimum` rows came before.
    """
    lowest, width = np.concatenate([np.full(window, np.inf), values]), 1
    while width < window:  # of two neighbouring stretches each time
        further = min(width, window - width)
        lowest = np.minimum(lowest[:-further], lowest[further:])
        width += further
    lowest = lowest[: values.size]
    lowest[:minimum] = np.nan
    return lowest


def trailing_mean(values: Floats, window: int, minimum: int = 1) -> Floats:
    """Mean of the `window` rows before each row.

    Returns:
        One value a row, NaN where fewer than `minimum` rows came before.
    """
    return _before(pl.Series(values).rolling_mean(window, min_samples=minimum))


def trailing_deviation(values: Floats, window: int, minimum: int = 2) -> Floats:
    """Sample standard deviation of the `window` rows before each row.

    Returns:
        One value a row, NaN where fewer than `minimum` rows came before.
    """
    return _before(pl.Series(values).rolling_std(window, min_samples=minimum))


def exponential_moments(values: Floats, decay: float) -> tuple[Floats, Floats]:
    """Exponentially weighted mean and standard deviation of the rows before each row.

    Returns:
        Mean and standard deviation, NaN at the first row.
    """
    series = pl.Series(values)
    mean = series.ewm_mean(alpha=1 - decay, adjust=True)
    deviation = series.ewm_std(alpha=1 - decay, adjust=True)
    return _before(mean), _before(deviation)


def median_and_sigma(
    values: Floats, rows: Rows, window: int, masked: Flags | None = None
) -> tuple[Floats, Floats]:
    """Median and robust standard deviation (1.4826 MAD) of the window before some rows.

    The deviation is taken from the median of the same window, so that a slowly falling loss does not
    count its own lag as noise. Rows in `masked` are left out of every window.

    Returns:
        Median and sigma, one a requested row; NaN where the window is empty.
    """
    centre = np.full(rows.size, np.nan)
    sigma = np.full(rows.size, np.nan)
    usable = values if masked is None else np.where(masked, np.nan, values)
    padded = np.concatenate([np.full(window, np.nan), usable])
    windows = np.lib.stride_tricks.sliding_window_view(padded, window)
    for start in range(0, rows.size, CHUNK):
        part = slice(start, start + CHUNK)
        block = windows[rows[part]]
        centre[part] = sorted_median(block)
        sigma[part] = SIGMA_PER_MAD * sorted_median(np.abs(block - centre[part][:, None]))
    return centre, sigma


def medians_at(values: Floats, rows: Rows, window: int, minimum: int = 1) -> Floats:
    """Median of the `window` rows before some rows: `trailing_median` where only a few are asked for.

    Returns:
        One value a requested row, NaN where fewer than `minimum` rows came before.
    """
    medians = np.full(rows.size, np.nan)
    padded = np.concatenate([np.full(window, np.nan), values])
    windows = np.lib.stride_tricks.sliding_window_view(padded, window)
    for start in range(0, rows.size, CHUNK):
        part = slice(start, start + CHUNK)
        medians[part] = sorted_median(windows[rows[part]])
    medians[rows < minimum] = np.nan
    return medians


def below_median(values: Floats, window: int, stride: int = STRIDE) -> Floats:
    """Bound the median of the `window` rows before each row from below, at a tenth of its cost.

    Every `stride` rows a window is looked at. In the next rows at most that many values are exchanged, so the
    median stays above the value that is as many ranks lower.

    Returns:
        One value a row, minus infinity in the first rows, for short windows and wherever a window holds NaN.
    """
    bound = np.full(values.size, -np.inf)
    rank = (window - 1) // 2 - stride
    if values.size > window and rank >= 0:
        windows = np.lib.stride_tricks.sliding_window_view(values, window)[::stride]
        lower = np.empty(len(windows))
        for start in range(0, len(windows), CHUNK):
            part = slice(start, start + CHUNK)
            lower[part] = np.partition(windows[part], rank, axis=1)[:, rank]
        lower[~np.isfinite(lower)] = -np.inf
        bound[window:] = np.repeat(lower, stride)[: values.size - window]
    return bound


def rows_above_median(values: Floats, window: int, minimum: int, rise: Floats | float) -> tuple[Rows, Floats]:
    """Find the rows that exceed the median of the `window` rows before them by more than a rise.

    Returns:
        The rows, and that median at each.
    """
    rows = np.flatnonzero(values - below_median(values, window) > rise)
    medians = medians_at(values, rows, window, minimum)
    above = values[rows] - medians > (rise if isinstance(rise, float) else rise[rows])
    return rows[above], medians[above]


def rows_after(flags: Flags, rows: int) -> NDArray[np.int64]:
    """Count the flags among the `rows` rows before each row.

    Returns:
        One count a row.
    """
    seen = np.concatenate([np.zeros(rows + 1, dtype=np.int64), np.cumsum(flags)])
    return np.asarray(seen[rows : rows + flags.size] - seen[: flags.size])


def block_medians(values: Floats, rows: int) -> Floats:
    """Median of each block of `rows` rows, counted from the end; rows left over at the beginning are left out.

    Returns:
        One value a block, in order.
    """
    blocks = values[values.size % rows :].reshape(-1, rows)
    if not blocks.size:
        return np.empty(0)
    low, high = (rows - 1) // 2, rows // 2
    ordered = np.partition(blocks, (low, high), axis=1)
    return np.asarray(0.5 * (ordered[:, low] + ordered[:, high]))


def sorted_median(block: Floats) -> Floats:
    """Median of each row without its NaN (sorting puts them last, which is faster than nanmedian).

    Returns:
        One median a row, NaN for rows without numbers.
    """
    ordered = np.sort(block, axis=1)
    count = np.sum(~np.isnan(ordered), axis=1)
    lower = np.maximum((count - 1) // 2, 0)
    upper = np.minimum(count // 2, block.shape[1] - 1)
    index = np.arange(len(block))
    median = 0.5 * (ordered[index, lower] + ordered[index, upper])
    return np.where(count > 0, median, np.nan)


def _before(rolling: pl.Series) -> Floats:
    """Shift by one row, so that row t knows only rows before t.

    Returns:
        The shifted values with NaN for null.
    """
    return rolling.shift(1).cast(pl.Float64).fill_null(float("nan")).to_numpy()
