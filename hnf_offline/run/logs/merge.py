"""Several files and restarts of one log become one row a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

#: A file whose step goes backwards more often than this is not in order; that says nothing of restarts.
_MOST_BACKWARD_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Segment:
    """One file's rows: `step` (i64) and f64 columns under our names, in the order they were written."""

    path: Path
    rows: pl.DataFrame


@dataclass(frozen=True, slots=True)
class Merged:
    """One row a step, sorted.

    Attributes:
        rows: the merged rows.
        duplicates: rows with a loss whose step came again with a loss.
        restarts: the first step of every continuation that goes back.
        files: the files in the order they were merged.
    """

    rows: pl.DataFrame
    duplicates: int
    restarts: tuple[int, ...]
    files: tuple[Path, ...]


def merge(segments: Sequence[Segment]) -> Merged:
    """Merge the files of one run by step; the last writer wins.

    Files are taken in the order of their first steps, of their last steps where those are equal. Rows of the
    same step within one uninterrupted stretch complete each other (losses and norms logged apart).

    Args:
        segments: one a file, each with at least one row.

    Returns:
        One row a step.
    """
    import polars as pl

    ordered = sorted(segments, key=lambda segment: _range(segment.rows))
    restarts: set[int] = set()
    parts = []
    last_step: int | None = None
    for segment in ordered:
        rows, backward = _stretches(segment.rows)
        restarts.update(backward)
        first, last = _range(rows)
        if last_step is not None and first <= last_step:
            restarts.add(first)
        last_step = last if last_step is None else max(last, last_step)
        parts.append(rows)
    joined = pl.concat(
        [part.with_columns(pl.lit(number).alias("_file")) for number, part in enumerate(parts)],
        how="diagonal",
    )
    values = [name for name in joined.columns if name not in {"step", "_file", "_stretch"}]
    written = joined.filter(pl.col("loss").is_not_null()).height
    # NaN is a value: only null gives way to an earlier cell of the same stretch.
    complete = joined.group_by(["step", "_file", "_stretch"], maintain_order=True).agg(
        pl.col(name).drop_nulls().last() for name in values
    )
    has_loss = complete.filter(pl.col("loss").is_not_null())
    latest = has_loss.unique("step", keep="last", maintain_order=True)
    # A later stretch without a loss for this step (an evaluation row, say) does not replace the loss.
    without = complete.join(latest.select("step"), on="step", how="anti").unique(
        "step", keep="last", maintain_order=True
    )
    rows = pl.concat([latest, without], how="diagonal").sort("step").select("step", *values)
    return Merged(
        rows, written - latest.height, tuple(sorted(restarts)), tuple(segment.path for segment in ordered)
    )


def _stretches(rows: pl.DataFrame) -> tuple[pl.DataFrame, list[int]]:
    # Number the uninterrupted stretches of a file; the steps at which a new one starts.
    import polars as pl

    backwards = (pl.col("step") < pl.col("step").shift(1)).fill_null(value=False)
    if rows.select(backwards.sum()).item() > _MOST_BACKWARD_SHARE * rows.height:
        return rows.with_columns(pl.lit(0).cast(pl.Int64).alias("_stretch")), []
    numbered = rows.with_columns(backwards.cast(pl.Int64).cum_sum().alias("_stretch"))
    return numbered, rows.filter(backwards)["step"].to_list()


def _range(rows: pl.DataFrame) -> tuple[int, int]:
    steps = rows["step"]
    return int(steps.min()), int(steps.max())  # type: ignore[arg-type]
