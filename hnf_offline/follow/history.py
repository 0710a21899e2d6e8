"""The log of a run that goes on: rows of files that were rotated away are kept, rows of abandoned attempts are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.run.records import Log

if TYPE_CHECKING:
    import polars as pl


def joined(before: pl.DataFrame | None, log: Log) -> tuple[pl.DataFrame, int | None]:
    """Put the rows that were read before together with those that can be read now.

    A log that begins later than before was rotated: the earlier rows are kept. One that ends earlier than before
    was started again, from the first step at which it differs or from its last restart on.

    Args:
        before: the rows as they were at the last look, None at the first.
        log: the log as it is now.

    Returns:
        The rows up to the last one that was written, and the step at which the run was started again since the last
        look (None where it was not).
    """
    import polars as pl

    rows = _written(log)
    if before is None or before.is_empty() or rows.is_empty():
        return rows, None
    first, last, reached = int(rows["step"][0]), int(rows["step"][-1]), int(before["step"][-1])
    again: int | None = None
    if last < reached:
        # An appended log says where it went back; a new file begins where the run does.
        again = max((step for step in log.restarts if step <= last), default=first)
    kept = before.filter(pl.col("step") < first)
    return pl.concat([kept, rows], how="diagonal_relaxed"), again


def _written(log: Log) -> pl.DataFrame:
    """Leave out what an earlier attempt wrote beyond the step that the present one has reached.

    Returns:
        The rows.
    """
    import polars as pl

    rows = log.rows.filter(pl.col("step").is_not_null())
    if not log.restarts or not log.segments:
        return rows
    return rows.filter(pl.col("step") <= log.segments[-1].last)
