"""Several files and restarts of one log become one row a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hnf_offline.run.records import LogSegment

if TYPE_CHECKING:
    import polars as pl

#: A file whose step goes backwards more often than a few times and this share is not in order;
#: that says nothing of restarts.
_MOST_BACKWARD_SHARE = 0.1
_FEW_BACKWARD = 2
#: Rows that are copies of rows at most so far before them were printed by several processes, if a third of the rows
#: are; rows that a resumed run repeats come in one stretch.
_ECHO_DISTANCE, _ECHO_SHARE, _ECHO_RETURNS = 64, 1 / 3, 3


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
        segments: the stretches of the files, in the order they were merged.
        disagreeing: how many of the duplicates have another loss than the row that counts.
    """

    rows: pl.DataFrame
    duplicates: int
    restarts: tuple[int, ...]
    files: tuple[Path, ...]
    segments: tuple[LogSegment, ...]
    disagreeing: int = 0


def merge(segments: Sequence[Segment]) -> Merged:
    """Merge the files of one run by step; the last writer wins.

    Files are taken in the order of their first steps, of their last steps where those are equal. Rows of the
    same step within one uninterrupted stretch complete each other (losses and norms logged apart).

    Args:
        segments: one a file, each with at least one row.

    Returns:
        One row a step.
    """
    ordered = sorted(segments, key=lambda segment: _range(segment.rows))
    if len(ordered) == 1 and _rising(ordered[0].rows["step"]):
        return _whole(ordered[0])
    if len(ordered) == 1 and _rising(ordered[0].rows["step"], strictly=False):
        return _in_order(ordered[0])
    return _general(ordered)


def _general(ordered: Sequence[Segment]) -> Merged:
    import polars as pl

    restarts: set[int] = set()
    parts = []
    echoes = 0
    last_step: int | None = None
    for segment in ordered:
        kept = _without_echoes(segment.rows)
        echoes += _with_loss(segment.rows) - _with_loss(kept)
        rows, backward = _stretches(kept)
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
    written = _with_loss(joined)
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
        rows,
        written + echoes - latest.height,
        tuple(sorted(restarts)),
        tuple(segment.path for segment in ordered),
        _segments(has_loss, latest, ordered),
        _disagreeing(joined, latest),
    )


def _disagreeing(written: pl.DataFrame, latest: pl.DataFrame) -> int:
    import polars as pl

    if _with_loss(written) == latest.height:
        return 0
    counts = latest.select("step", pl.col("loss").alias("_counts"))
    return (
        written.join(counts, on="step").filter(pl.col("loss") != pl.col("_counts")).height
    )  # NaN equals NaN


def _whole(segment: Segment) -> Merged:
    # One file in which every step comes once and in order: nothing to merge.
    first, last = _range(segment.rows)
    piece = LogSegment(segment.path, first, last, _with_loss(segment.rows))
    return Merged(segment.rows, 0, (), (segment.path,), (piece,))


def _in_order(segment: Segment) -> Merged:
    # One file in order in which some steps come several times, one after the other: only those have to be merged.
    import polars as pl

    same = segment.rows["step"].diff() == 0
    repeated = (same | same.shift(-1)).fill_null(value=False)
    merged = _general([Segment(segment.path, segment.rows.filter(repeated))])
    rows = pl.concat([segment.rows.filter(~repeated), merged.rows]).sort("step")
    whole = _whole(Segment(segment.path, rows))
    return Merged(rows, merged.duplicates, (), whole.files, whole.segments, merged.disagreeing)


def _segments(
    has_loss: pl.DataFrame, latest: pl.DataFrame, files: Sequence[Segment]
) -> tuple[LogSegment, ...]:
    import polars as pl

    stretch = ["_file", "_stretch"]
    counted = (
        has_loss
        .group_by(stretch)
        .agg(
            pl.col("step").min().alias("first"),
            pl.col("step").max().alias("last"),
            pl.len().alias("rows"),
        )
        .join(latest.group_by(stretch).agg(pl.len().alias("kept")), on=stretch, how="left")
        .sort(stretch)
    )
    return tuple(
        LogSegment(
            files[row["_file"]].path, row["first"], row["last"], row["rows"], row["rows"] - (row["kept"] or 0)
        )
        for row in counted.iter_rows(named=True)
    )


def _without_echoes(rows: pl.DataFrame) -> pl.DataFrame:
    # What several processes print comes several times, in no strict order: that is no restart.
    import polars as pl

    steps = rows["step"]
    if int((steps.diff() < 0).sum()) < _ECHO_RETURNS:
        return rows
    numbered = rows.with_row_index("_row")
    first = pl.col("_row").first().over(rows.columns)
    distance = numbered.select((pl.col("_row") - first).alias("distance"))["distance"]
    copies = (distance > 0) & (distance <= _ECHO_DISTANCE)
    if int(copies.sum()) < _ECHO_SHARE * rows.height:
        return rows
    return rows.filter(~copies)


def _stretches(rows: pl.DataFrame) -> tuple[pl.DataFrame, list[int]]:
    # Number the uninterrupted stretches of a file; the steps at which a new one starts.
    import polars as pl

    backwards = (pl.col("step") < pl.col("step").shift(1)).fill_null(value=False)
    if rows.select(backwards.sum()).item() > max(_FEW_BACKWARD, _MOST_BACKWARD_SHARE * rows.height):
        return rows.with_columns(pl.lit(0).cast(pl.Int64).alias("_stretch")), []
    numbered = rows.with_columns(backwards.cast(pl.Int64).cum_sum().alias("_stretch"))
    # A restart is where the losses go back; other numbers may be counted otherwise (epochs beside steps).
    losses = (
        numbered
        .filter(pl.col("loss").is_not_null())
        .group_by("_stretch", maintain_order=True)
        .agg(pl.col("step").first().alias("first"), pl.col("step").max().alias("last"))
    )
    again = losses.filter(pl.col("first") <= pl.col("last").cum_max().shift(1))
    return numbered, again["first"].to_list()


def _rising(steps: pl.Series, *, strictly: bool = True) -> bool:
    rises = steps.diff()
    return len(steps) < 2 or bool((rises > 0 if strictly else rises >= 0).all())


def _with_loss(rows: pl.DataFrame) -> int:
    return rows.height - rows["loss"].null_count()


def _range(rows: pl.DataFrame) -> tuple[int, int]:
    # Of the losses, as restarts are.
    losses = rows["loss"]
    steps = (
        rows["step"] if losses.null_count() in {0, len(losses)} else rows["step"].filter(losses.is_not_null())
    )
    return int(steps.min()), int(steps.max())  # type: ignore[arg-type]
