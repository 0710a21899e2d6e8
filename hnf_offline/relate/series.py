"""Read one quantity out of the long table, or one column out of the log, as two arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hnf_offline.table import of_checkpoints, one_source

if TYPE_CHECKING:
    import polars as pl

Steps = NDArray[np.int64]
Values = NDArray[np.float64]

#: Steps after an onset in which nothing is scored: the spike is not over (study, section 1).
AFTERSHOCK = 40


def points(profile: pl.DataFrame, quantity: str, layer: str = "") -> tuple[Steps, Values]:
    """Give one quantity of one layer over the steps; several batches of a step become their median.

    Of a step measured at its checkpoint and by zooming as well the checkpoint counts.

    Returns:
        Steps, ascending and distinct, and values; both empty where it was not measured.
    """
    import polars as pl

    chosen = profile.filter((pl.col("quantity") == quantity) & (pl.col("layer") == layer))
    rows = one_source(chosen).group_by("step").agg(pl.col("value").median()).sort("step")
    return rows["step"].to_numpy().astype(np.int64), rows["value"].to_numpy().astype(np.float64)


def zoomed_steps(profile: pl.DataFrame, quantity: str) -> frozenset[int]:
    """Find the steps at which a quantity of the whole model was measured by zooming only, not at a checkpoint.

    Returns:
        The steps.
    """
    steps, _ = points(profile, quantity)
    at_checkpoints, _ = points(of_checkpoints(profile), quantity)
    return frozenset(steps.tolist()) - frozenset(at_checkpoints.tolist())


def spacing_at(steps: Steps, step: int) -> int | None:
    """Steps from the last point before a step to that step: how finely it is known that something happened there.

    Returns:
        The distance, None where nothing was measured before.
    """
    before = steps[steps < step]
    return int(step - before[-1]) if before.size else None


def layers(profile: pl.DataFrame, quantity: str) -> tuple[str, ...]:
    """Name the layers (not the whole model) a quantity was measured in.

    Returns:
        Layer paths in forward order.
    """
    import polars as pl

    rows = profile.filter((pl.col("quantity") == quantity) & (pl.col("layer") != ""))
    return tuple(
        rows.group_by("layer").agg(pl.col("depth").min()).sort(["depth", "layer"])["layer"].to_list()
    )


def column(log: pl.DataFrame | None, name: str) -> tuple[Steps, Values]:
    """Give one column of the log; rows without a value are left out, NaN and infinity are kept.

    Returns:
        Steps and values; both empty where the log has no such column.
    """
    if log is None or name not in log.columns or "step" not in log.columns:
        return np.empty(0, np.int64), np.empty(0, np.float64)
    rows = log.select("step", name).drop_nulls().sort("step")
    return rows["step"].to_numpy().astype(np.int64), rows[name].to_numpy().astype(np.float64)


def spacing(steps: Steps) -> int:
    """Median distance between the steps of a series: how finely it can tell when.

    Returns:
        The distance, at least 1.
    """
    return max(1, int(np.median(np.diff(steps)))) if steps.size > 1 else 1


def last_at_or_before(steps: Steps, values: Values, step: float) -> tuple[int, float] | None:
    """Find the last finite point at or before a step.

    Returns:
        Its step and value, or None.
    """
    known = np.flatnonzero((steps <= step) & np.isfinite(values))
    return None if known.size == 0 else (int(steps[known[-1]]), float(values[known[-1]]))


def first_after(steps: Steps, values: Values, step: float) -> tuple[int, float] | None:
    """Find the first finite point after a step.

    Returns:
        Its step and value, or None.
    """
    known = np.flatnonzero((steps > step) & np.isfinite(values))
    return None if known.size == 0 else (int(steps[known[0]]), float(values[known[0]]))
