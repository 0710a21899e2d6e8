"""Whether two logs are of one run, and which of them tells more: judged by their losses alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.run.records import Log

if TYPE_CHECKING:
    import numpy as np

#: Decimals beyond which losses count as not rounded; with fewer than the second, logs cannot be told apart.
_MOST_DECIMALS, _FEWEST_DECIMALS = 7, 2
#: Share of common steps whose losses agree.
_AGREEING = 0.9
#: Fewer common steps prove nothing.
_FEWEST = 3


def repeats(log: Log, other: Log) -> bool:
    """Tell whether a log holds what another one holds already.

    Returns:
        True where nearly all of its steps are there with the same losses.
    """
    steps, losses = _series(log)
    other_steps, other_losses = _series(other)
    _, here, there = _common(steps, other_steps)
    return (
        len(here) >= max(_FEWEST, _AGREEING * len(steps))
        and _agreement(losses[here], other_losses[there]) >= _AGREEING
    )


def goes_further(log: Log, other: Log) -> bool:
    """Tell whether a log is of the same run as another one and tells more: later steps, or those in between.

    A trainer that logs every n steps writes the loss of that step or the mean of the n steps; either may agree.

    Returns:
        True where it does; a log of which that cannot be shown does not.
    """
    import numpy as np

    steps, losses = _series(log)
    other_steps, other_losses = _series(other)
    _, here, there = _common(steps, other_steps)
    if len(here) < max(_FEWEST, 0.5 * len(other_steps)):
        return False
    # Over the common range it must not tell less, as a sparser log that happens to end later would.
    within = int(np.sum((steps >= other_steps[0]) & (steps <= other_steps[-1])))
    later = steps[-1] > other_steps[-1] and within >= _AGREEING * len(other_steps)
    finer = within >= 1.5 * len(other_steps)
    if not (later or finer):
        return False
    if _agreement(losses[here], other_losses[there]) >= _AGREEING:
        return True
    sums = np.concatenate([[0.0], np.cumsum(np.where(np.isfinite(losses), losses, 0.0))])
    # Rows from the one after the step before to the step itself.
    starts = (
        np.searchsorted(steps, other_steps[there[1:] - 1], side="right") if len(there) > 1 else np.array([])
    )
    ends = here[1:] + 1
    means = (sums[ends] - sums[starts.astype(int)]) / np.maximum(1, ends - starts)
    return _agreement(means, other_losses[there[1:]]) >= _AGREEING


def steps_with_a_loss(log: Log) -> tuple[int, int]:
    """Find the range of a log's losses; other numbers may count otherwise.

    Returns:
        The first and last step that has one.
    """
    steps, _ = _series(log)
    return int(steps[0]), int(steps[-1])


def _series(log: Log) -> tuple[np.ndarray, np.ndarray]:
    import polars as pl

    rows = log.rows.filter(pl.col("loss").is_not_null())
    return rows["step"].to_numpy(), rows["loss"].to_numpy()


def _common(steps: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import numpy as np

    found: tuple[np.ndarray, np.ndarray, np.ndarray] = np.intersect1d(
        steps, others, assume_unique=True, return_indices=True
    )
    return found


def _agreement(losses: np.ndarray, others: np.ndarray) -> float:
    # The share of pairs that are equal: to the last digit where both were rounded alike, else up to the rounding of
    # the coarser. Nothing wider: runs of two seeds, or that learn nothing, differ by a tenth of a percent.
    import numpy as np

    decimals = sorted(map(_decimals, (losses, others)))
    if not len(losses) or (decimals[0] < _FEWEST_DECIMALS and decimals[0] != decimals[1]):
        return 0.0
    rounding = 0.0 if decimals[0] == decimals[1] else 0.5 * 10.0 ** -decimals[0]
    with np.errstate(invalid="ignore"):
        near = np.abs(losses - others) <= rounding + 1e-6 * np.maximum(np.abs(others), 1.0)
    return float(np.mean(near | (losses == others) | (np.isnan(losses) & np.isnan(others))))


def _decimals(losses: np.ndarray) -> int:
    # How many decimals losses were rounded to.
    import numpy as np

    finite = losses[np.isfinite(losses)]
    for decimals in range(_MOST_DECIMALS):
        # A number kept in single precision is not quite the one that was rounded.
        with np.errstate(over="ignore"):
            off = np.abs(finite - np.round(finite, decimals)) > 1e-7 * np.maximum(np.abs(finite), 1e-3)
        if not len(off) or np.mean(off) <= 0.02:
            return decimals
    return _MOST_DECIMALS
