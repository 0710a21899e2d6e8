"""What the loss did at jumps of the learning rate, and the phases of a learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from hnf_offline.detect.autocorrelation import effective_rows
from hnf_offline.detect.trailing import Floats
from hnf_offline.quantities.loss_curve import schedule_effect

#: A jump: the rate changes by this factor in one row, and ten times as much as in the rows beside it.
FACTOR, ALONE = 1.2, 10.0
#: Rows on either side that are fitted.
ROWS, LEAST = 50, 10
#: Highest is what lies within this share of the rate that 5 % of the rows exceed (a jump of a few rows is no phase);
#: a phase is at least this share of the rows.
CONSTANT, USUAL, SHORTEST = 0.01, 0.95, 0.02


@dataclass(frozen=True, slots=True)
class ScheduleEffect:
    """What the loss did at a jump of the learning rate.

    Attributes:
        step: first step with the new rate.
        before: the rate before.
        after: the rate after.
        effect: step of the loss beyond its trend.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    step: int
    before: float
    after: float
    effect: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch in which the learning rate rises, stays or falls: "warm-up", "highest" or "decay"."""

    name: str
    first: int
    last: int


def schedule_effects(steps: NDArray[np.int64], loss: Floats, rates: Floats) -> Iterator[ScheduleEffect]:
    """Go through the jumps of a learning rate.

    Args:
        steps: ascending.
        loss: one a step, finite.
        rates: learning rate of each step, NaN where it was not logged.

    Yields:
        One effect a jump that has ten rows on either side before the next one.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.abs(np.diff(np.log(np.where(rates > 0, rates, np.nan))))
    change = np.where(np.isfinite(change), change, 0.0)
    beside = np.maximum(np.append(0.0, change[:-1]), np.append(change[1:], 0.0))
    jumps = np.flatnonzero((change > np.log(FACTOR)) & (change > ALONE * beside)) + 1
    for place, row in enumerate(jumps.tolist()):
        begin = max(row - ROWS, int(jumps[place - 1]) if place else 0)
        end = min(row + ROWS, int(jumps[place + 1]) if place + 1 < jumps.size else loss.size)
        if min(row - begin, end - row) < LEAST:
            continue
        part, after = loss[begin:end], np.arange(begin, end) >= row
        effect = schedule_effect(part, after)
        design = np.column_stack([np.ones(part.size), np.arange(part.size), after])
        residual = part - design @ np.linalg.lstsq(design, part, rcond=None)[0]
        independent = effective_rows(residual)
        freedom = independent - 3
        if freedom < 3:
            continue
        # The rows count for less by the share that correlation leaves of them.
        variance = float(np.sum(residual**2)) / (part.size - 3) * part.size / independent
        error = float(np.sqrt(variance * np.linalg.inv(design.T @ design)[2, 2]))
        reach = float(student.ppf(0.975, freedom)) * error
        yield ScheduleEffect(
            int(steps[row]), float(rates[row - 1]), float(rates[row]), effect, effect - reach, effect + reach
        )


def phases(steps: NDArray[np.int64], rates: Floats) -> tuple[Phase, ...]:
    """Divide a run by its learning rate: before it is first at its highest, while it stays there, after.

    Returns:
        The phases that hold at least 2 % of the rows, in order; none where no rate was logged.
    """
    known = np.isfinite(rates)
    steps, rates = steps[known], rates[known]
    if steps.size < 3 or rates.max() <= 0:
        return ()
    high = np.flatnonzero(rates >= (1 - CONSTANT) * np.quantile(rates, USUAL))
    cuts = (0, int(high[0]), int(high[-1]) + 1, steps.size)
    named = zip(("warm-up", "highest", "decay"), cuts[:-1], cuts[1:], strict=True)
    least = max(SHORTEST * steps.size, 2)
    return tuple(
        Phase(name, int(steps[begin]), int(steps[end - 1]))
        for name, begin, end in named
        if end - begin >= least
    )
