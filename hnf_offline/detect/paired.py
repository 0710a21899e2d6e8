"""Whether the losses of two runs differ by more than their noise: a paired t test of correlated rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from hnf_offline.detect.autocorrelation import SLOW, effective_rows, effective_rows_of_slow_waves
from hnf_offline.detect.trailing import Floats
from hnf_offline.quantities.loss_curve import paired_t

#: Rows, and independent rows among them, that the test needs.
ROWS, EFFECTIVE = 20, 6.0


@dataclass(frozen=True, slots=True)
class PairedTest:
    """The losses of two runs over the second half of their common steps.

    Attributes:
        first: first step of the stretch.
        last: its last step.
        rows: common rows with finite losses in it.
        effective_rows: independent rows among them.
        difference: mean of loss A - loss B.
        low: lower end of its 95 % interval.
        high: upper end.
        t: the statistic; infinite where the difference is the same in every row.
        p: two-sided.
    """

    first: int
    last: int
    rows: int
    effective_rows: float
    difference: float
    low: float
    high: float
    t: float
    p: float


def paired_test(steps: NDArray[np.int64], loss_a: Floats, loss_b: Floats) -> PairedTest | None:
    """Compare two losses at common steps, over the second half of them.

    How many rows are independent is estimated twice, from autocorrelations and from the slowest waves, and the
    estimate that leaves the wider interval counts: a slow wander beside much noise hides from the first, a short
    correlation is better known by it.

    Args:
        steps: the common steps, ascending.
        loss_a: loss of run A there.
        loss_b: loss of run B there.

    Returns:
        The test; None where there are too few rows or independent rows, or the two are equal.
    """
    half = steps >= (steps[0] + steps[-1]) / 2 if steps.size else np.zeros(0, dtype=np.bool_)
    keep = half & np.isfinite(loss_a) & np.isfinite(loss_b)
    steps, loss_a, loss_b = steps[keep], loss_a[keep], loss_b[keep]
    if steps.size < ROWS or bool((loss_a == loss_b).all()):
        return None
    difference = loss_a - loss_b
    of_lags, of_waves = effective_rows(difference), effective_rows_of_slow_waves(difference)
    if min(of_lags, of_waves) < EFFECTIVE:
        return None
    # Of the two errors, each with the degrees of freedom that its estimate has, the one with the wider interval.
    spread = float(difference.std(ddof=1))
    reach, effective, freedom = max(
        (float(student.ppf(0.975, free)) * spread / rows**0.5, rows, free)
        for rows, free in ((of_lags, of_lags - 1), (min(of_waves, float(steps.size)), float(SLOW)))
    )
    mean = float(difference.mean())
    with np.errstate(divide="ignore"):
        statistic = paired_t(loss_a, loss_b, effective)
    return PairedTest(
        first=int(steps[0]),
        last=int(steps[-1]),
        rows=int(steps.size),
        effective_rows=effective,
        difference=mean,
        low=mean - reach,
        high=mean + reach,
        t=statistic,
        p=float(2 * student.sf(abs(statistic), freedom)),
    )
