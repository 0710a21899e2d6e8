"""Where two series part durably.

A point is *apart* where the log of the ratio of the two values (their difference, where not all values are
positive) exceeds

    threshold = max(floor, 4 sqrt((d_A^2 + d_B^2) / 2)),  d = 1.4826 MAD of a run's changes per step

(for noise that is independent from step to step, the root is the standard deviation of the difference of two
runs) and where the error bars of the two values, if they have any, do not overlap. The runs have parted at
the first of `hold` points in a row that are apart to the same side. A value that is not finite is never compared
as a number: finite against not finite is apart.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from hnf_offline.comparison import Separation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnf_offline.diff.series import Series

#: A log ratio below this never counts as apart: logs are rounded, ...
LOG_FLOOR = 0.01
#: ... eigenvalues are solved to a residual of a few per cent, ...
PROFILE_FLOOR = 0.05
#: ... and with fewer changes than `ENOUGH_CHANGES` the noise of a run is not known: this must do.
FEW_POINTS_FLOOR = math.log(1.5)
ENOUGH_CHANGES = 8
#: Multiples of the noise that count as apart.
SIGMAS = 4.0


def separate(quantity: str, layer: str, series: Series, floor: float) -> Separation:
    """Find where two series part durably.

    Args:
        quantity: its name.
        layer: its layer, "" for the whole model.
        series: the two series at their common steps.
        floor: log ratio that never counts as apart.

    Returns:
        The separation; its step is None where they never part durably.
    """
    logarithmic = _all_positive(series)
    threshold = _threshold(series, logarithmic, floor)
    side = _side(series, logarithmic, threshold)
    start, stop = _first_stretch(side, hold(len(side)))
    at = start if start is not None else len(side) - 1
    certified = True if series.certified is None else bool(series.certified[at])
    return Separation(
        quantity=quantity,
        layer=layer,
        step=None if start is None else int(series.steps[start]),
        a=float(series.a[at]),
        b=float(series.b[at]),
        threshold=threshold,
        certified=certified,
        until=None if stop is None or stop >= len(side) else int(series.steps[stop - 1]),
        scale="log ratio" if logarithmic else "difference",
    )


def _all_positive(series: Series) -> bool:
    values = np.concatenate([series.a, series.b, series.own_a, series.own_b])
    finite = values[np.isfinite(values)]
    return bool(finite.size) and bool((finite > 0).all())


def _threshold(series: Series, logarithmic: bool, floor: float) -> float:
    """Take the threshold from the two runs' own step-to-step noise (module docstring).

    Returns:
        The log ratio, or the difference, beyond which a point is apart.
    """
    noise = []
    for own in (series.own_a, series.own_b):
        finite = own[np.isfinite(own)]
        changes = np.diff(np.log(finite) if logarithmic else finite)
        if changes.size < ENOUGH_CHANGES:
            floor = max(floor, FEW_POINTS_FLOOR)
        if changes.size:
            noise.append(1.4826 * float(np.median(np.abs(changes - np.median(changes)))))
    spread = SIGMAS * math.sqrt(sum(one * one for one in noise) / 2)
    if logarithmic:
        return max(floor, spread)
    values = np.concatenate([series.own_a, series.own_b])
    values = np.abs(values[np.isfinite(values)])
    scale = float(np.median(values)) if values.size else 0.0
    return max(floor * scale, spread, np.finfo(np.float64).tiny)


def _side(series: Series, logarithmic: bool, threshold: float) -> NDArray[np.int8]:
    """Say of every common step whether the runs are apart there, and to which side.

    Returns:
        0 together, 1 where A is above, -1 where B is above, 2 where only one of them is finite.
    """
    finite_a, finite_b = np.isfinite(series.a), np.isfinite(series.b)
    finite = finite_a & finite_b
    side = np.zeros(len(series.steps), dtype=np.int8)
    a, b = series.a[finite], series.b[finite]
    gap = np.log(a) - np.log(b) if logarithmic else a - b
    apart = np.abs(gap) > threshold
    if series.bars_overlap is not None:
        apart &= ~series.bars_overlap[finite]
    side[finite] = np.where(apart, np.sign(gap), 0).astype(np.int8)
    side[finite_a != finite_b] = 2
    return side


def hold(points: int) -> int:
    """Give how many points in a row make a separation durable: a tenth of them, 2 to 200.

    Returns:
        The number of points.
    """
    return min(200, max(2, math.ceil(points / 10)))


def _first_stretch(side: NDArray[np.int8], hold: int) -> tuple[int | None, int | None]:
    """Find the first `hold` points in a row that are apart to one side (2 belongs to either).

    Returns:
        Index of the first and one past the last point of that stretch, or None and None.
    """
    start, sign = 0, 0
    for index, value in enumerate([*side.tolist(), 0]):
        if value == 0 or (value != 2 and sign not in {0, value}):
            if index - start >= hold:
                return start, index
            start, sign = (index + 1, 0) if value == 0 else (index, value)
        elif value != 2:
            sign = value
    return None, None


def in_order(separation: Separation) -> tuple[float, bool, str, str]:
    """Order separations as they are told: by step, the loss first, those that never part last.

    Returns:
        A sort key.
    """
    step = math.inf if separation.step is None else separation.step
    return step, separation.quantity != "loss", separation.layer, separation.quantity
