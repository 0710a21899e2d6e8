"""S against its own plateau: where S never rests at 1, as under minibatch noise, a rise may tell more than a level."""

from __future__ import annotations

import math
from statistics import median

import polars as pl

NAME = "S over its plateau"
#: Checkpoints before that make the plateau, and how many it takes at least.
BEFORE, LEAST = 10, 5


def with_plateau(scores: pl.DataFrame) -> pl.DataFrame:
    """Add S over the median of S at the checkpoints before.

    Args:
        scores: of one run, in order of steps; the columns step and S.

    Returns:
        The scores with the column `NAME`, null where fewer than `LEAST` of the `BEFORE` checkpoints before have S;
        as they were where S is not among them.
    """
    if "S" not in scores.columns or NAME in scores.columns:
        return scores
    ratio = scores["S"].to_list()
    rises: list[float | None] = []
    for place, now in enumerate(ratio):
        known = [
            one for one in ratio[max(0, place - BEFORE) : place] if one is not None and math.isfinite(one)
        ]
        plateau = median(known) if len(known) >= LEAST else 0.0
        rises.append(now / plateau if now is not None and plateau > 0 else None)
    return scores.with_columns(pl.Series(NAME, rises, dtype=pl.Float64))
