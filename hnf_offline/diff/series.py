"""Two runs at their common steps, series by series."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from hnf_offline.run.records import Run

#: Log columns that are compared, in the order in which they are told.
LOG_COLUMNS = ("loss", "learning_rate", "grad_norm")
#: What says how well something was measured, and nothing of the run.
OF_THE_MEASUREMENT = ("gradient.check_error", "hessian.product_error", "map.left_out", "precision.left_out")
#: Ending of what names a head: a name is neither above nor below another.
NAMES_A_HEAD = "_head"


@dataclass(frozen=True, slots=True)
class Series:
    """One series of the two runs at their common steps.

    Attributes:
        steps: the common steps, ascending.
        a: values of run A there.
        b: values of run B there.
        own_a: all values of run A, from which its noise is taken.
        own_b: all values of run B.
        bars_overlap: where the error bars of the two overlap, None where there are none.
        certified: where both are certified, None where all are.
    """

    steps: NDArray[np.int64]
    a: NDArray[np.float64]
    b: NDArray[np.float64]
    own_a: NDArray[np.float64]
    own_b: NDArray[np.float64]
    bars_overlap: NDArray[np.bool_] | None = None
    certified: NDArray[np.bool_] | None = None


def logged(run_a: Run, run_b: Run) -> Iterable[tuple[str, Series]]:
    """Align the two logs by step.

    Yields:
        Name of the column and the series, where both logs have it at a common step.
    """
    import polars as pl

    if run_a.log is None or run_b.log is None:
        return
    for column in LOG_COLUMNS:
        if column not in run_a.log.rows.columns or column not in run_b.log.rows.columns:
            continue
        a = run_a.log.rows.select("step", pl.col(column).cast(pl.Float64)).drop_nulls()
        b = run_b.log.rows.select("step", pl.col(column).cast(pl.Float64)).drop_nulls()
        both = a.join(b, on="step", suffix="_b").sort("step")
        if not both.is_empty():
            yield (
                column,
                Series(
                    steps=both["step"].to_numpy(),
                    a=both[column].to_numpy(),
                    b=both[f"{column}_b"].to_numpy(),
                    own_a=a.sort("step")[column].to_numpy(),
                    own_b=b.sort("step")[column].to_numpy(),
                ),
            )


def profiled(profile_a: pl.DataFrame, profile_b: pl.DataFrame) -> Iterable[tuple[str, str, Series]]:
    """Align the two profiles by step, layer, quantity and replayed rows.

    Yields:
        Quantity, layer and the series, in the order of depth.
    """
    import polars as pl

    # "step 13" names other rows at every step; at checkpoint 12 it is the batch of the next step.
    ahead = pl.col("batch").str.extract(r"^step (\d+)$").cast(pl.Int64) - pl.col("step")
    # All other labels name the replay rows; whether those are the same data is told apart from this.
    replay = pl.when(pl.col("batch") == "").then(pl.lit("")).otherwise(pl.lit("replay"))
    source = pl.coalesce(pl.format("step {}", ahead), replay).alias("source")
    of_the_run = ~(
        pl.col("quantity").is_in(OF_THE_MEASUREMENT) | pl.col("quantity").str.ends_with(NAMES_A_HEAD)
    )
    a, b = (one.filter(of_the_run).with_columns(source) for one in (profile_a, profile_b))
    key = ["step", "layer", "quantity", "source"]
    both = a.join(b.select([*key, "value", "low", "high", "certified"]), on=key, suffix="_b")
    own = ["quantity", "layer", "source"]
    values_a = _values(a, own)
    values_b = _values(b, own)
    seen: set[tuple[str, str]] = set()
    groups = both.sort("depth", "layer", "quantity", "source", "step").partition_by(own, maintain_order=True)
    for group in groups:
        quantity, layer, kind = (str(group[column][0]) for column in own)
        if (quantity, layer) in seen:  # the same quantity on other rows: one series is enough
            continue
        seen.add((quantity, layer))
        low = group.select(pl.max_horizontal("low", "low_b")).to_series()
        bars = group.select(
            overlap=pl.col("low").fill_null(pl.col("value")) <= pl.col("high_b").fill_null(pl.col("value_b")),
            reverse=pl.col("low_b").fill_null(pl.col("value_b")) <= pl.col("high").fill_null(pl.col("value")),
        )
        overlap = (bars["overlap"] & bars["reverse"]).to_numpy() if low.null_count() < len(low) else None
        yield (
            quantity,
            layer,
            Series(
                steps=group["step"].to_numpy(),
                a=group["value"].to_numpy(),
                b=group["value_b"].to_numpy(),
                own_a=values_a[quantity, layer, kind],
                own_b=values_b[quantity, layer, kind],
                bars_overlap=overlap,
                certified=(group["certified"] & group["certified_b"]).to_numpy(),
            ),
        )


def _values(profile: pl.DataFrame, key: list[str]) -> dict[tuple[str, ...], NDArray[np.float64]]:
    grouped = profile.sort("step").partition_by(key, as_dict=True, maintain_order=True)
    return {tuple(map(str, name)): group["value"].to_numpy() for name, group in grouped.items()}
