"""A loss that stays near where it began."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hnf_offline.detect.measured import logged
from hnf_offline.detect.trailing import block_medians
from hnf_offline.findings import LogEvent

ROWS, SHARE = 200, 0.5  # at least so many rows, and this share of the log
PROGRESS, LEVEL = 0.01, 0.7
MEDIAN_ROWS = 20
BEGINNING = 0.02
QUARTERS = 4


def plateau(log: pl.DataFrame) -> Iterator[LogEvent]:
    """A loss that stays near where it began: no progress although the learning rate is above zero.

    Over at least 200 logged rows and half of the log the trailing median improves by less than 1 %, from its lowest
    and from the first quarter's median to the last quarter's, at a level above 0.7 of the first losses. A log that
    begins in mid-training says nothing of it.

    Yields:
        Kind "plateau", at most one.
    """
    steps, loss = logged(log, "loss")
    keep = np.isfinite(loss)
    steps, loss = steps[keep], loss[keep]
    length = max(ROWS, int(SHARE * loss.size))
    if loss.size < length + MEDIAN_ROWS or loss[0] <= 0 or not _from_the_start(steps):
        return
    level = block_medians(loss, MEDIAN_ROWS)
    last = steps[loss.size % MEDIAN_ROWS :][MEDIAN_ROWS - 1 :: MEDIAN_ROWS]
    span = -(-length // MEDIAN_ROWS)
    # Backwards, so that each block knows the lowest level of those that follow it.
    lowest = pl.Series(level).reverse().rolling_min(span + 1, min_samples=1).reverse().to_numpy()
    began = float(np.median(loss[:10]))
    stuck = (level - lowest < PROGRESS * np.abs(level)) & (level > LEVEL * began)
    for begin in np.flatnonzero(stuck[: max(level.size - span, 0)]):
        # By their medians: one low block does not make those after it stand still.
        early, late = np.array_split(level[begin : begin + span + 1], QUARTERS)[:: QUARTERS - 1]
        if np.median(early) - np.median(late) >= PROGRESS * abs(float(np.median(early))):
            continue
        if _learning(log, int(last[begin])):
            evidence = (
                f"median loss is {level[begin]:.4g} at step {last[begin]} and {level[begin + span]:.4g} at "
            )
            evidence += f"{last[begin + span]}; it began at {began:.4g}."
            yield LogEvent("plateau", "warning", int(last[begin]), int(last[begin + span]), evidence)
        return


def _from_the_start(steps: NDArray[np.int64]) -> bool:
    """Whether a log begins where training began: late in a run a loss may well stay where it is.

    Returns:
        False where the first logged step lies later than 2 % of the last one.
    """
    return bool(steps[0] <= BEGINNING * steps[-1] + 2 * float(np.median(np.diff(steps))))


def _learning(log: pl.DataFrame, step: int) -> bool:
    """Whether the learning rate was above zero after a step, as far as logged.

    Returns:
        True also where no learning rate was logged.
    """
    steps, rates = logged(log, "learning_rate")
    rates = rates[(steps >= step) & np.isfinite(rates)]
    return rates.size == 0 or bool(np.median(rates) > 0)
