"""How a log was written: restarts, rows written twice, stretches that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from hnf_offline.detect.measured import logged
from hnf_offline.findings import LogEvent

REPEATED_SHARE = 0.05
GAP_TIMES, GAP_STEPS = 20, 50


@dataclass(frozen=True, slots=True)
class Written:
    """How a log was written.

    Attributes:
        rows: rows that count, one a step.
        repeated: rows whose step came again later; the last writer counts.
        restarts: steps at which the log jumps back or starts again.
        disagreeing: repeated rows whose loss is not the one that counts, None where nobody compared them.
    """

    rows: int
    repeated: int = 0
    restarts: tuple[int, ...] = ()
    disagreeing: int | None = None


def repeated(how: Written) -> Iterator[LogEvent]:
    """Tell restarts, and rows that were written more than once.

    Rows repeated after a restart are what resuming from a checkpoint leaves. They are a warning where no restart
    explains them, or where they are more than 5 % of the log: two runs may be mixed in it.

    Yields:
        Kind "restart" for each step at which the log goes back, "duplicated-log" for the repeated rows.
    """
    for step in how.restarts:
        yield LogEvent(
            "restart", "info", step, step, f"the log goes on from step {step} for the second time."
        )
    if how.repeated:
        share = how.repeated / max(how.rows, 1)
        severe = not how.restarts or share > REPEATED_SHARE
        evidence = f"{how.repeated:,} rows were written again ({share:.1%} of the log)"
        if how.disagreeing is not None:
            evidence += f", {how.disagreeing:,} of them with another loss"
        if how.rows and how.repeated % how.rows == 0 and not how.disagreeing:
            evidence += (
                f": every step {1 + how.repeated // how.rows} times, as several processes do that log alike"
            )
        evidence += "; the last writing counts."
        first = how.restarts[0] if how.restarts else 0
        yield LogEvent("duplicated-log", "warning" if severe else "info", first, first, evidence)


def gaps(log: pl.DataFrame) -> Iterator[LogEvent]:
    """Stretches without a row, much longer than the usual distance of rows.

    Yields:
        Kind "gap", for each distance of more than 20 usual ones and 50 steps; the ten longest.
    """
    steps, _ = logged(log, "loss")
    if steps.size < 3:
        return
    distance = np.diff(steps)
    usual = max(float(np.median(distance)), 1.0)
    long = np.flatnonzero((distance > GAP_TIMES * usual) & (distance > GAP_STEPS))
    for row in sorted(long[np.argsort(-distance[long], kind="stable")][:10].tolist()):
        before, after = int(steps[row]), int(steps[row + 1])
        evidence = (
            f"no loss is logged between steps {before} and {after}; rows are {usual:g} apart elsewhere."
        )
        yield LogEvent("gap", "info", before, after, evidence)
