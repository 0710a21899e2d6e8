"""Rules that flag single rows of a loss log as too high. Each looks only at earlier rows.

The default works on log loss; where the last 1000 rows hold a loss of zero or below, it works on the loss
itself and measures rises against the trailing median of its magnitude.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from hnf_offline.detect.trailing import (
    SIGMA_PER_MAD,
    Flags,
    Floats,
    Rows,
    exponential_moments,
    median_and_sigma,
    medians_at,
    rows_above_median,
    rows_after,
    trailing_deviation,
    trailing_mean,
    trailing_median,
    trailing_minimum,
)

WINDOW = 60  # rows of the trailing median and MAD
HISTORY = 10  # rows before a median means anything
RISE = 0.1  # smallest rise of log loss: ripples at the edge of stability stay below it
SIGMAS = 6.0
SHORT_WINDOW = 10.0  # with n rows before, so many times 1/n - 1/60 more: 11 sigmas at ten rows, 8 at twenty
FLOOR = 0.01  # smallest sigma of log loss, so that a constant loss has a finite z
MINIMUM_WINDOW, MINIMUM_RATIO, MINIMUM_NATS, MINIMUM_SIGMAS = 30, 1.5, 0.3, 4.5
JUMP_RISE, JUMP_INCREMENTS, JUMP_ROWS = 0.15, 6.0, 5
EARLY_RATIO = 2.0  # with a short history: this multiple of the highest loss so far
SECOND_RATIO = 3.0  # with one earlier row: this multiple of it
EARLY_RANGES = 120.0  # or less, where the rise is this / n times the range of log loss of the n rows so far
SMALLEST = 1e-12
SIGNED_MEMORY = 1000


@dataclass(frozen=True, slots=True)
class Flagged:
    """What a rule says of each row.

    Attributes:
        high: the loss left its band, given the rows before that were in their band.
        fresh: it is high even against all the rows before, spikes included.
        z: robust z, NaN where it was not needed.
        before: baseline before the row, in units of the loss.
        back: the loss below which the row would count as back in its band.
        merge: flags this many rows apart belong to one spike.
    """

    high: Flags
    fresh: Flags
    z: Floats
    before: Floats
    back: Floats
    merge: int


def robust(loss: Floats) -> Flagged:
    """Trailing median and MAD of log loss, and two rules for losses that swing by themselves.

    High if z >= 6 and the log rises by more than 0.1; or if the loss is 1.5 times and 0.3 nat above its
    30-row minimum and z > 4.5; or if it jumps from its 5-row minimum by 0.3 nat, 0.15 of log and six typical
    increments. With fewer than ten rows, if it is twice (with one row, three times) the highest loss so far; from
    two rows on also if it is 0.3 nat and 0.15 of log above it and 120 / n times the range of the n rows so far.

    Returns:
        The flags, merged over 20 rows.
    """
    positive = _robust_scores(loss, np.log(np.maximum(loss, SMALLEST)), np.ones_like(loss))
    signed = _recently_not_positive(loss)
    if not signed.any():
        return positive
    magnitude = trailing_median(np.abs(loss), WINDOW)
    scale = np.maximum(np.where(np.isfinite(magnitude), magnitude, np.abs(loss)), RISE * RISE)
    linear = _robust_scores(loss, loss, scale)
    return Flagged(
        np.where(signed, linear.high, positive.high),
        np.where(signed, linear.fresh, positive.fresh),
        np.where(signed, linear.z, positive.z),
        np.where(signed, linear.before, positive.before),
        np.where(signed, linear.back, positive.back),
        positive.merge,
    )


def _recently_not_positive(loss: Floats) -> Flags:
    """Whether one of the last rows, this one included, is zero or below.

    Returns:
        One flag a row.
    """
    signed = loss <= 0
    return signed | (rows_after(signed, SIGNED_MEMORY - 1) > 0) if signed.any() else signed


def _robust_scores(loss: Floats, level: Floats, unit: Floats) -> Flagged:
    """The robust rule on one scale: `level` is log loss with unit 1, or the loss with unit its magnitude.

    Returns:
        The flags on that scale.
    """
    logarithmic = level is not loss
    risen = np.zeros(loss.size, dtype=np.bool_)
    risen[rows_above_median(level, WINDOW, HISTORY, RISE * unit)[0]] = True
    minimum = trailing_minimum(loss, MINIMUM_WINDOW, HISTORY)
    above_minimum = (loss > MINIMUM_RATIO * minimum) & (loss - minimum > MINIMUM_NATS) & logarithmic
    recent = trailing_minimum(level, JUMP_ROWS, 3)
    jump = (
        (loss - trailing_minimum(loss, JUMP_ROWS, 3) > MINIMUM_NATS)
        & (level - recent > JUMP_RISE)
        & logarithmic
    )
    increment = np.full(loss.size, np.nan)
    rows = np.flatnonzero(jump)
    if rows.size:
        increments = np.abs(np.diff(level, prepend=level[:1]))
        increment[rows] = SIGMA_PER_MAD * medians_at(increments, rows, WINDOW, HISTORY)
    # A deviation of few rows is unsure: more of them are asked for until the window is full.
    unsure = np.ones(loss.size)
    seen = np.arange(1, min(WINDOW, loss.size))
    unsure[seen] += SHORT_WINDOW * (1 / seen - 1 / WINDOW)
    jump[rows] = level[rows] - recent[rows] > JUMP_INCREMENTS * (unsure * increment)[rows]
    highest = np.maximum.accumulate(np.maximum(loss[:HISTORY], SMALLEST))
    early = np.zeros(loss.size, dtype=np.bool_)
    short = np.arange(1, min(HISTORY, loss.size))
    ratio = np.where(short == 1, SECOND_RATIO, EARLY_RATIO)
    early[short] = (
        (loss[short] > ratio * highest[short - 1]) | _beyond_range(loss, level, short)
    ) & logarithmic

    z = np.full(loss.size, np.nan)
    centre = np.full(loss.size, np.nan)
    sigma = np.full(loss.size, np.nan)
    rows = np.flatnonzero(risen | above_minimum | jump | early)
    centre[rows], sigma[rows] = median_and_sigma(level, rows, WINDOW)
    z[rows] = (level[rows] - centre[rows]) / np.maximum(sigma[rows], FLOOR * unit[rows])
    fresh = ((z >= SIGMAS * unsure) & risen) | (above_minimum & (z > MINIMUM_SIGMAS * unsure)) | jump | early

    high = fresh.copy()
    flagged = rows_after(fresh, WINDOW)
    rows = np.flatnonzero(flagged)
    rows = rows[np.minimum(rows, WINDOW) - flagged[rows] >= 2 * HISTORY]
    clean_centre, clean_sigma = median_and_sigma(level, rows, WINDOW, masked=fresh)
    clean_z = (level[rows] - clean_centre) / np.maximum(clean_sigma, FLOOR * unit[rows])
    again = (clean_z >= SIGMAS) & (level[rows] - clean_centre > RISE * unit[rows])
    taken = rows[again]
    high[taken] = True
    z[taken], centre[taken], sigma[taken] = clean_z[again], clean_centre[again], clean_sigma[again]

    local = np.flatnonzero(jump & ~(z >= SIGMAS))
    centre[local], _ = median_and_sigma(level, local, JUMP_ROWS)
    sigma[local] = np.minimum(increment[local], JUMP_RISE)
    z[local] = (level[local] - centre[local]) / np.maximum(increment[local], FLOOR)

    band = centre + np.maximum(sigma, 0.05 * unit)
    if logarithmic:
        rows = np.flatnonzero(np.isfinite(centre))
        centre[rows], band[rows] = np.exp(centre[rows]), np.exp(band[rows])
    return Flagged(high, fresh, z, centre, band, 20)


def _beyond_range(loss: Floats, level: Floats, rows: Rows) -> Flags:
    """Whether a row leaves the range of the few rows before it by a multiple of that range.

    The jump rule for a short history: the fewer rows, the less their range says, so the multiple falls with them.

    Returns:
        One flag a requested row; False with a single row before, whose range says nothing.
    """
    highest, lowest = (
        np.maximum.accumulate(level[:HISTORY])[rows - 1],
        np.minimum.accumulate(level[:HISTORY])[rows - 1],
    )
    bound = EARLY_RANGES / rows * np.maximum(highest - lowest, FLOOR / JUMP_INCREMENTS)
    rise = level[rows] - highest
    tall = (loss[rows] - np.maximum.accumulate(loss[:HISTORY])[rows - 1] > MINIMUM_NATS) & (rise > JUMP_RISE)
    return np.asarray(tall & (rise > bound) & (rows >= 2))


def _moments(loss: Floats, mean: Floats, deviation: Floats, sigmas: float, merge: int) -> Flagged:
    """High where the loss exceeds a mean by so many standard deviations.

    Returns:
        The flags.
    """
    floor = 1e-9 * np.maximum(np.abs(mean), SMALLEST)
    with np.errstate(invalid="ignore"):
        z = (loss - mean) / np.maximum(deviation, floor)
        high = z >= sigmas
    return Flagged(high, high, z, mean, mean + deviation, merge)


def olmo(loss: Floats) -> Flagged:
    """At least 7 standard deviations above the rolling mean of 1000 values (100 at least).

    Returns:
        The flags.
    """
    return _moments(loss, trailing_mean(loss, 1000, 100), trailing_deviation(loss, 1000, 100), 7.0, 10)


def olmo_core(loss: Floats) -> Flagged:
    """More than mean + 6 standard deviations of the last 128 values.

    Returns:
        The flags.
    """
    return _moments(loss, trailing_mean(loss, 128, 128), trailing_deviation(loss, 128, 128), 6.0, 10)


def adagc(loss: Floats) -> Flagged:
    """At least 10 standard deviations above the rolling mean of 1000 values (100 at least).

    Returns:
        The flags.
    """
    return _moments(loss, trailing_mean(loss, 1000, 100), trailing_deviation(loss, 1000, 100), 10.0, 10)


def stable_adamw(loss: Floats) -> Flagged:
    """More than 3.2 standard deviations above the exponential mean, the beginning left out.

    The first 1000 rows are left out, or the first tenth of a shorter log.

    Returns:
        The flags, merged over 10 rows.
    """
    mean, deviation = exponential_moments(loss, 0.99)
    flagged = _moments(loss, mean, deviation, 3.2, 10)
    skipped = np.arange(loss.size) < min(1000, loss.size // 10)
    return Flagged(
        flagged.high & ~skipped,
        flagged.fresh & ~skipped,
        flagged.z,
        flagged.before,
        flagged.back,
        10,
    )


def mosaic(loss: Floats) -> Flagged:
    """More than twice the running mean of 100 rows for the fourth row in a row.

    Returns:
        The flags; the onset is the row at which patience ran out.
    """
    mean = trailing_mean(loss, 100, 20)
    above = loss > 2.0 * mean
    patient = pl.Series(above.astype(np.float64)).rolling_sum(4, min_samples=4).fill_null(0).to_numpy() >= 4
    z = (loss - mean) / np.maximum(trailing_deviation(loss, 100, 20), SMALLEST)
    return Flagged(patient, patient, z, mean, 1.1 * mean, 10)


RULES: dict[str, Callable[[Floats], Flagged]] = {
    "robust": robust,
    "olmo": olmo,
    "olmo-core": olmo_core,
    "stable-adamw": stable_adamw,
    "mosaic": mosaic,
    "adagc": adagc,
}

#: name -> (description, source)
SPIKE_RULES: dict[str, tuple[str, str]] = {
    "robust": (
        "robust z >= 6 of log loss over the last 60 rows and a rise above 0.1; "
        "or 1.5 times the 30-row minimum, 0.3 nat above it and z > 4.5; or a jump of six typical increments",
        "this package; the first two rules are those of its prediction study",
    ),
    "olmo": ("at least 7 standard deviations above the rolling mean of 1000", "OLMo 2, arXiv:2501.00656"),
    "olmo-core": ("above mean + 6 standard deviations of the last 128", "OLMo-core, SkipStepOptimizer"),
    "stable-adamw": (
        "above the exponential mean + 3.2 standard deviations, once within 10 rows; "
        "the first 1000 rows, or the first tenth of a shorter log, are left out",
        "Wortsman et al. 2023, arXiv:2304.13013",
    ),
    "mosaic": ("above twice the running mean of 100 for 4 rows", "llm-foundry, KillLossSpike callback"),
    "adagc": ("at least 10 standard deviations above the rolling mean of 1000", "AdaGC, arXiv:2502.11034"),
}
