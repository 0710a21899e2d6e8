"""PELT: where did the level of a series change, seen from its end? Retrospective, never an alarm."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import ruptures
from numpy.typing import NDArray
from ruptures.base import BaseCost

from hnf_offline.detect.autocorrelation import (
    NULLS,
    PATHS,
    ar1_paths,
    long_run_variance,
    split_gains,
    to_scale,
)
from hnf_offline.detect.cusum import finite_series
from hnf_offline.detect.trailing import Floats
from hnf_offline.findings import ChangePoint

SHORTEST = 8  # a shorter series has no level to speak of
LONGEST = 512  # a longer one is averaged in blocks: PELT on correlated data costs the square
SEGMENT = 2

#: Penalties at 5 %, in long-run variances, by length: 95 % quantiles of 10 000 AR(1) draws with phi = 0.8, which is
#: the strictest null at every length; standard error below 2.2 %. Other rates are drawn when asked for.
TABULATED_RATE = 0.05
PENALTIES = {
    8: 89.2,
    10: 83.8,
    12: 84.9,
    14: 82.8,
    16: 83.0,
    20: 77.3,
    24: 73.2,
    28: 64.1,
    32: 60.3,
    40: 50.3,
    48: 57.9,
    56: 49.2,
    64: 44.4,
    80: 37.4,
    96: 30.8,
    112: 26.8,
    128: 24.3,
    160: 21.3,
    192: 19.2,
    224: 17.6,
    256: 16.7,
    320: 15.1,
    384: 13.8,
    448: 13.3,
    512: 12.7,
}


class SquaredError(BaseCost):  # type: ignore[misc]
    """Squared error about the mean of a segment, from running sums: ruptures' "l2" without its cost a call."""

    model = ""
    min_size = 1

    def fit(self, signal: Floats) -> SquaredError:
        """Sum up a signal of one column.

        Returns:
            Itself.
        """
        self.signal = signal
        centred = signal[:, 0] - signal[:, 0].mean()
        self.sums: list[float] = [0.0, *np.cumsum(centred).tolist()]
        self.squares: list[float] = [0.0, *np.cumsum(centred * centred).tolist()]
        return self

    def error(self, start: int, end: int) -> float:
        """Sum of squares of rows start to end - 1 about their mean.

        Returns:
            The cost.
        """
        rise = self.sums[end] - self.sums[start]
        return self.squares[end] - self.squares[start] - rise * rise / (end - start)


#: Half the digits of the largest number.
_LARGEST = 1e150


def change_points_pelt(
    steps: Sequence[int] | NDArray[np.int64],
    values: Sequence[float] | Floats,
    quantity: str,
    layer: str,
    *,
    false_alarm_rate: float = 0.05,
    seed: int = 0,
) -> tuple[ChangePoint, ...]:
    """Level shifts of one series by PELT with squared error, on logarithms where all values are positive.

    The penalty is a multiple of the series' long-run variance (estimated after its best splits are
    taken out); the multiple is the one at which AR(1) draws of the same length, phi up to 0.8, show any
    change with the stated probability. `step` is the first step of the new level.

    Args:
        steps: increasing.
        values: one a step; those that are not finite are left out.
        quantity: name in the catalogue.
        layer: module path.
        false_alarm_rate: probability of any change-point in an AR(1) series without change.
        seed: seed of the draws, for rates that are not tabulated.

    Returns:
        Change-points with `causal` False. Source: Killick et al. 2012, J. Am. Stat. Assoc. 107.
    """
    where, series = finite_series(steps, values)
    if series.size < SHORTEST or np.ptp(series) == 0:
        return ()
    block = -(-series.size // LONGEST)
    scaled = to_scale(series)
    largest = float(np.abs(scaled).max())
    if largest > _LARGEST:
        # Squares of such numbers are infinite; change-points do not depend on the unit.
        scaled = scaled / largest
    usable = scaled.size // block * block
    scaled = scaled[:usable].reshape(-1, block).mean(axis=1)
    where = where[:usable:block]
    length = _rounded(scaled.size)
    tabulated = false_alarm_rate == TABULATED_RATE and length in PENALTIES
    multiple = PENALTIES[length] if tabulated else drawn_multiple(length, false_alarm_rate, seed)
    penalty = float(long_run_variance(scaled)) * multiple
    if penalty <= 0 or _gain(scaled[None, :])[0] <= penalty:
        return ()
    fitted = ruptures.Pelt(custom_cost=SquaredError(), jump=1, min_size=SEGMENT).fit(scaled[:, None])
    breaks = [0, *fitted.predict(pen=penalty)]
    levels = [float(scaled[a:b].mean()) for a, b in itertools.pairwise(breaks)]
    return tuple(
        ChangePoint(quantity, layer, int(where[at]), "pelt", "up" if after > before else "down", False)
        for at, before, after in zip(breaks[1:-1], levels, levels[1:], strict=False)
    )


def _rounded(length: int) -> int:
    """Round a length up to a fifth of its power of two, so that penalties can be kept.

    Returns:
        The length to draw.
    """
    unit = 1 << max(0, length.bit_length() - 3)
    return -(-length // unit) * unit


@lru_cache(maxsize=256)
def drawn_multiple(length: int, rate: float, seed: int) -> float:
    """Draw the penalty, in long-run variances, that no null exceeds with more than probability `rate`.

    Returns:
        The multiple, the largest over the nulls.
    """
    multiples = []
    for phi in NULLS:
        paths = ar1_paths(phi, length, PATHS // 2, seed)
        multiples.append(
            float(np.quantile(_gain(paths) / long_run_variance(paths), 1 - rate, method="higher"))
        )
    return max(multiples)


def _gain(paths: Floats) -> Floats:
    """Penalty at which PELT starts to report: the gain of the best split, or half that of the best stretch.

    Returns:
        One value a path.
    """
    single = split_gains(paths)[:, SEGMENT - 1 : paths.shape[1] - SEGMENT].max(axis=1)
    return np.asarray(np.maximum(single, 0.5 * _largest_stretch(paths)))


def _largest_stretch(paths: Floats) -> Floats:
    """Largest gain of one stretch [i, j) with a level of its own against the rest before and after.

    Returns:
        One gain a path.
    """
    length = paths.shape[1]
    sums = np.concatenate(
        [np.zeros((len(paths), 1)), np.cumsum(paths - paths.mean(axis=1, keepdims=True), axis=1)], axis=1
    )
    largest = np.zeros(len(paths))
    for width in range(SEGMENT, length - 2 * SEGMENT + 1):
        starts = np.arange(SEGMENT, length - SEGMENT - width + 1)
        left, inside = sums[:, starts], sums[:, starts + width] - sums[:, starts]
        right = -sums[:, starts + width]
        gain = left**2 / starts + inside**2 / width + right**2 / (length - starts - width)
        largest = np.maximum(largest, gain.max(axis=1))
    return largest
