"""Memory that grows for as long as training runs, where a log has a column of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hnf_offline.detect.measured import logged
from hnf_offline.detect.trailing import SIGMA_PER_MAD, Floats
from hnf_offline.findings import LogEvent

#: Rows below which a stretch between restarts says nothing, and the share of it that is warm-up in any case.
LEAST_ROWS, WARM_UP = 60, 0.2
#: Blocks that the rest is cut into; of their differences so many must rise, and none may take back so much of it.
BLOCKS, RISING, TAKEN_BACK = 12, 9, 0.25
#: Least rise, as a share of the level and in standard errors of a block's median.
RISE, ERRORS = 0.05, 5.0
#: Part of the whole rise that the second half must have: half of it for a leak, little for what levels off.
STILL = 0.3

_MEMORY = re.compile(
    r"(?:^|_)(?:memory|vram|max_active_gib|rss|rssmb|(?:allocated|reserved)_bytes)(?:_|$)|memoryallocated"
    r"|(?:gpu|cuda|cpu|max|peak|system|device|host)_?mem(?:_|$)|^mem(?:_(?:alloc|reserv|max|peak|us|gb|gib|mb|bytes)|$)"
)
#: What is no amount that can leak: times, changes, traffic, counts of retries, scores of memorising.
_OTHERWISE = re.compile(
    r"(?:time|delta|clock|bandwidth|retries|ooms?|access|total|capacity|tokens|speed|loss|accuracy|acc|score)(?:_|$)"
)
_FREE = re.compile(
    r"(?:^|_)(?:gb_free|free_gb|(?:mem|memory)_(?:free|available)\w*|(?:free|available)_mem\w*)(?:_|$)"
)


def memory_growth(log: pl.DataFrame, restarts: Sequence[int] = ()) -> Iterator[LogEvent]:
    """Find memory that goes on growing after its warm-up: what a leak does, and an allocator that has settled does not.

    Each stretch between restarts is judged by itself. Its first fifth is warm-up; the medians of twelve blocks of the
    rest must rise from block to block nine times of eleven, by 5 % and five standard errors of a median in all, and
    still do so in the second half. Peaks that a long batch sets now and then, one step to a new level, and noise do
    not. Of several columns (one a device) the one that grows most is told. Looks back from the end of a stretch.

    Args:
        log: `step` and any column of memory used or free, known by its name, in any unit.
        restarts: steps at which the log goes on after a restart: memory starts anew there.

    Yields:
        Kind "memory-growth", at most one.
    """
    found: list[tuple[float, LogEvent]] = []
    for column in _columns(log):
        steps, values = logged(log, column)
        keep = np.isfinite(values)
        steps, values = steps[keep], values[keep]
        if _is_free(column):
            values = -values
        bounds = np.searchsorted(steps, sorted(set(restarts)))
        for part, amounts in zip(np.split(steps, bounds), np.split(values, bounds), strict=True):
            event = _growth(column, part, amounts)
            if event is not None:
                found.append(event)
    if found:
        yield max(found, key=lambda one: one[0])[1]


def _columns(log: pl.DataFrame) -> list[str]:
    return [
        name for name, kind in log.schema.items() if kind.is_numeric() and (_is_free(name) or _is_used(name))
    ]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _is_free(name: str) -> bool:
    return bool(_FREE.search(_plain(name)))


def _is_used(name: str) -> bool:
    plain = _plain(name)
    return bool(_MEMORY.search(plain)) and not _OTHERWISE.search(plain)


def _growth(column: str, steps: NDArray[np.int64], values: Floats) -> tuple[float, LogEvent] | None:
    settled = int(WARM_UP * steps.size)
    if steps.size < LEAST_ROWS:
        return None
    steps, values = steps[settled:], values[settled:]
    blocks = np.array_split(values, BLOCKS)
    level = np.array([np.median(block) for block in blocks])
    rise = float(level[-1] - level[0])
    changes = np.diff(level)
    deviation = SIGMA_PER_MAD * float(
        np.median(np.concatenate([np.abs(block - one) for block, one in zip(blocks, level, strict=True)]))
    )
    error = 1.25 * deviation / np.sqrt(values.size / BLOCKS)  # of a median of normal values
    scale = float(np.max(np.abs(level)))
    if not rise > max(RISE * scale, ERRORS * error):
        return None
    lasting = np.sum(changes > 0) >= RISING and changes.min() > -TAKEN_BACK * rise
    if not lasting or level[-1] - level[BLOCKS // 2] < STILL * rise:
        return None
    first, last = abs(float(level[0])), abs(float(level[-1]))
    rate = 1000 * rise / float(steps[-1] - steps[0])
    verb = "fell" if _is_free(column) else "rose"
    evidence = (
        f"{column} {verb} from {first:.4g} to {last:.4g} over steps {steps[0]} to {steps[-1]} ({rate:.3g} per 1000 "
        f"steps), in {int(np.sum(changes > 0))} of {BLOCKS - 1} stretches, and still does."
    )
    return rise / scale, LogEvent("memory-growth", "warning", int(steps[0]), int(steps[-1]), evidence)
