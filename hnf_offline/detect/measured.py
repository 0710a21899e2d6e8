"""Series of the long table as arrays: one value a step, however many batches were replayed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hnf_offline.detect.trailing import Floats


@dataclass(frozen=True, slots=True)
class Measured:
    """One quantity of one layer over the steps; values may be NaN or infinite."""

    quantity: str
    layer: str
    depth: int
    steps: NDArray[np.int64]
    values: Floats


def measured(profile: pl.DataFrame) -> Iterator[Measured]:
    """Go through the series of a table in forward order.

    Of several batches at one step the first by name counts, so that a series keeps to one.

    Yields:
        One series a (quantity, layer).
    """
    if profile.is_empty():
        return
    rows = (
        profile
        .drop_nulls(["step", "value"])
        .sort(["quantity", "depth", "layer", "step", "batch"])
        .unique(["quantity", "layer", "step"], keep="first", maintain_order=True)
    )
    for part in rows.partition_by(["quantity", "layer"], maintain_order=True):
        yield Measured(
            str(part["quantity"][0]),
            str(part["layer"][0]),
            int(part["depth"][0]),
            part["step"].to_numpy(),
            part["value"].to_numpy(),
        )


def one(profile: pl.DataFrame, quantity: str, layer: str = "") -> Measured:
    """Select one series.

    Returns:
        The series, empty where it was not measured.
    """
    if not profile.is_empty():
        chosen = profile.filter((pl.col("quantity") == quantity) & (pl.col("layer") == layer))
        for series in measured(chosen):
            return series
    return Measured(quantity, layer, -1, np.empty(0, dtype=np.int64), np.empty(0))


def logged(log: pl.DataFrame, column: str) -> tuple[NDArray[np.int64], Floats]:
    """Select one column of the log, without the rows that lack it.

    Returns:
        Steps and values, empty where the log has no such column.
    """
    if log.is_empty() or column not in log.columns:
        return np.empty(0, dtype=np.int64), np.empty(0)
    rows = (
        log.select(pl.col("step").cast(pl.Int64), pl.col(column).cast(pl.Float64)).drop_nulls().sort("step")
    )
    return rows["step"].to_numpy(), rows[column].to_numpy()
