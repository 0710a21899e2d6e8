"""Sustained drops of the speed of training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from hnf_offline.detect.measured import logged
from hnf_offline.detect.trailing import SIGMA_PER_MAD, block_medians, trailing_median
from hnf_offline.findings import LogEvent

BLOCK_ROWS, BASE_BLOCKS, LEAST_BLOCKS = 20, 10, 2
DROP, BACK = 0.75, 0.9  # of the usual speed
SIGMAS = 1.5  # of single rows: five of a median of twenty


def drops(log: pl.DataFrame) -> Iterator[LogEvent]:
    """Find where training became slower for good, or for long.

    Speed is the log's throughput, else one over its step time. A drop begins with a block of 20 rows whose median lies
    below 0.75 of that of the ten blocks before it, and ends with a block back above 0.9 of it; its own median is below
    0.75 too. One that ends with the next block is a pause and none. Evaluations and checkpoints slow single rows, which
    medians pass over.

    Yields:
        Kind "throughput-drop", one a drop.
    """
    steps, speed, name = _speed(log)
    left_over = speed.size % BLOCK_ROWS
    steps, speed = steps[left_over:], speed[left_over:]
    level = block_medians(speed, BLOCK_ROWS)
    usual = trailing_median(level, BASE_BLOCKS, LEAST_BLOCKS)
    spread = SIGMA_PER_MAD * block_medians(np.abs(speed - np.repeat(level, BLOCK_ROWS)), BLOCK_ROWS)
    sigma = trailing_median(spread, BASE_BLOCKS, LEAST_BLOCKS)
    low = np.flatnonzero((level < DROP * usual) & (usual - level > SIGMAS * sigma))
    block = 0
    for known in low.tolist():
        if known < block:
            continue
        returned = np.flatnonzero(level[known:] > BACK * usual[known])
        block = known + int(returned[0]) if returned.size else level.size
        if block == known + 1:
            continue  # twenty slow rows are a pause
        # It may have begun in the block before.
        start = max(known - 1, 0) * BLOCK_ROWS
        slow = speed[start : (known + 1) * BLOCK_ROWS] < 0.5 * (1 + DROP) * usual[known]
        start += _begins(slow)
        end = min(block * BLOCK_ROWS, speed.size - 1)
        share = float(np.median(speed[start : end + 1])) / usual[known]
        if share >= DROP:
            continue  # one dip of a smaller drop
        evidence = f"{name} fell to {share:.0%} of what it was before step {steps[start]}"
        evidence += f" and was back by step {steps[end]}." if returned.size else " and stayed there."
        yield LogEvent("throughput-drop", "warning", int(steps[start]), int(steps[end]), evidence)


def _begins(slow: np.ndarray) -> int:
    # The row that best parts fast rows from slow ones: fewest slow ones before it and fast ones from it on.
    before = np.concatenate(([0], np.cumsum(slow)))
    after = np.concatenate((np.cumsum(~slow[::-1])[::-1], [0]))
    return min(int(np.argmin(before + after)), slow.size - 1)


def _speed(log: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, str]:
    # Steps, speed, and what it is called; rows without a positive number are left out.
    for column, name in (("throughput", "throughput"), ("step_time", "speed (one over the time of a step)")):
        steps, values = logged(log, column)
        keep = np.isfinite(values) & (values > 0)
        if keep.any():
            return steps[keep], values[keep] if column == "throughput" else 1.0 / values[keep], name
    return np.empty(0, dtype=np.int64), np.empty(0), ""
