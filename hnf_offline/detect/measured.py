"""Series of the long table as arrays: one value a step, however many batches were replayed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hnf_offline.detect.trailing import Flags, Floats
from hnf_offline.table import one_source


@dataclass(frozen=True, slots=True)
class Measured:
    """One quantity of one layer over the steps; values may be NaN or infinite.

    Attributes:
        quantity: name in the catalogue or of a log column.
        layer: module path, "" for the whole model.
        depth: position in forward order.
        steps: ascending and distinct.
        values: one a step.
        zoomed: which rows were measured by retraining between checkpoints; empty for none of them.
    """

    quantity: str
    layer: str
    depth: int
    steps: NDArray[np.int64]
    values: Floats
    zoomed: Flags = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))

    def from_zoom(self, row: int) -> bool:
        """Say whether a row was measured by retraining step by step, not at a checkpoint.

        Returns:
            False also where nothing is known of where the rows come from.
        """
        return bool(self.zoomed[row]) if self.zoomed.size else False

    def known(self) -> Measured:
        """Leave out the rows whose value is NaN or infinite.

        Returns:
            The rest.
        """
        finite = np.isfinite(self.values)
        zoomed = self.zoomed[finite] if self.zoomed.size else self.zoomed
        return replace(self, steps=self.steps[finite], values=self.values[finite], zoomed=zoomed)

    def place(self, row: int) -> str:
        """Name where a row was measured.

        Returns:
            "checkpoint 192", "step 185" for a row of the zoom.
        """
        return f"{'step' if self.from_zoom(row) else 'checkpoint'} {self.steps[row]}"


def measured(profile: pl.DataFrame) -> Iterator[Measured]:
    """Go through the series of a table in forward order.

    Of several batches at one step the first by name counts, so that a series keeps to one.

    Yields:
        One series a (quantity, layer).
    """
    if profile.is_empty():
        return
    rows = (
        one_source(profile)
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
            _zoomed(part),
        )


def _zoomed(rows: pl.DataFrame) -> Flags:
    if "source" not in rows.columns:
        return np.zeros(rows.height, dtype=np.bool_)
    return (rows["source"].fill_null("checkpoint") == "zoom").to_numpy()


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


def worst_head(profile: pl.DataFrame, series: Measured, row: int) -> str:
    """Say which head a value of a worst head is of.

    Returns:
        " (head 3)", "" where the table does not say.
    """
    heads = one(profile, f"{series.quantity}_head", series.layer)
    at = np.flatnonzero(heads.steps == series.steps[row])
    return f" (head {heads.values[at[0]]:.0f})" if at.size and np.isfinite(heads.values[at[0]]) else ""


def logged(log: pl.DataFrame, column: str) -> tuple[NDArray[np.int64], Floats]:
    """Select one column of the log, without the rows that lack it.

    Returns:
        Steps and values, empty where the log has no such column.
    """
    if log.is_empty() or column not in log.columns:
        return np.empty(0, dtype=np.int64), np.empty(0)
    rows = log.select(pl.col("step").cast(pl.Int64), pl.col(column).cast(pl.Float64)).drop_nulls()
    rows = rows if rows["step"].is_sorted() else rows.sort("step")
    return rows["step"].to_numpy(), rows[column].to_numpy()
