"""Picking series out of the log and the long table, as arrays ready to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hnf_offline.report.chart import Array, Line
from hnf_offline.table import of_checkpoints, one_source

if TYPE_CHECKING:
    import polars as pl

#: What the alarm strip shows, the best first; the last one is a log column.
STRONGEST = (
    "hessian.stability_ratio",
    "hessian.update_direction",
    "hessian.lambda_max",
    "gradient.norm",
)

#: 1 is the edge of stability for these.
EDGE_AT_ONE = frozenset({"hessian.stability_ratio", "hessian.update_direction", "hessian.gradient_direction"})

#: Short names for axes and sentences.
SYMBOL = {
    "hessian.stability_ratio": "S (stability ratio)",
    "hessian.lambda_max": "λmax of the Hessian",
    "hessian.update_direction": "S along the update",
    "hessian.gradient_direction": "S along the gradient",
    "hessian.unstable_mass": "unstable mass",
    "gradient.norm": "gradient norm",
    "adam.lag_rms": "Adam lag RMS",
    "grad_norm": "logged gradient norm",
    "learning_rate": "learning rate",
    "loss": "loss",
    "attention.logit_max": "largest attention logit",
    "proxy": "component estimates",
}


def symbol(quantity: str) -> str:
    """Name a quantity for an axis.

    Returns:
        A short name, the catalogue's own name where there is none.
    """
    return SYMBOL.get(quantity, quantity)


def logged(run_log: pl.DataFrame | None, column: str) -> tuple[Array, Array]:
    """Read one column of the log: rows without a value left out, NaN and infinities kept.

    Returns:
        Steps and values; both empty where the log has no such column.
    """
    import polars as pl

    if run_log is None or column not in run_log.columns or run_log.height == 0:
        return np.empty(0), np.empty(0)
    rows = run_log.select(
        pl.col("step").cast(pl.Float64), pl.col(column).cast(pl.Float64, strict=False)
    ).drop_nulls()
    return rows["step"].to_numpy(), rows[column].to_numpy()


def measured(profile: pl.DataFrame, quantity: str, layer: str = "") -> pl.DataFrame:
    """Select one quantity of one layer, one row a step: the checkpoint's where it was zoomed as well.

    Returns:
        Columns of the long table, sorted by step.
    """
    import polars as pl

    chosen = profile.filter((pl.col("quantity") == quantity) & (pl.col("layer") == layer))
    return one_source(chosen).unique("step", keep="last", maintain_order=True).sort("step")


def measured_line(profile: pl.DataFrame, quantity: str, layer: str, label: str, role: str) -> Line | None:
    """Make a line of one measured quantity, joined only between neighbouring checkpoints.

    It goes through zoomed steps as well; markers are at checkpoints only.

    Returns:
        The line with its error bars, None where nothing was measured.
    """
    import polars as pl

    rows = measured(profile, quantity, layer)
    if rows.height == 0:
        return None
    columns = rows.select(pl.col("step", "value", "low", "high").cast(pl.Float64))
    # One copy each: polars' own buffers are read-only views.
    steps, values, low, high = (columns[name].to_numpy().copy() for name in columns.columns)
    gap = usual_gap(np.unique(of_checkpoints(profile)["step"].to_numpy().astype(np.float64)))
    saved = of_checkpoints(rows)["step"].to_numpy()
    return Line(
        label,
        role,
        steps,
        values,
        marker="circle",
        low=low,
        high=high,
        hollow=~rows["certified"].fill_null(False).to_numpy(),
        reach=None if gap is None else 1.5 * gap,
        marked=None if saved.size == rows.height else np.isin(steps, saved),
    )


def usual_gap(steps: Array) -> float | None:
    """Find the gap that covers half the step axis, so that a dense window does not pass for the schedule.

    Returns:
        Steps between checkpoints, None below two.
    """
    if len(steps) < 2:
        return None
    gaps = np.sort(np.diff(steps))
    covered = np.cumsum(gaps)
    return float(gaps[np.searchsorted(covered, covered[-1] / 2)])


def strongest_quantity(profile: pl.DataFrame) -> str | None:
    """Choose what to draw under the loss.

    Returns:
        The first of `STRONGEST` measured for the whole model, None where none was.
    """
    import polars as pl

    present = set(profile.filter(pl.col("layer") == "")["quantity"].unique().to_list())
    return next((quantity for quantity in STRONGEST if quantity in present), None)
