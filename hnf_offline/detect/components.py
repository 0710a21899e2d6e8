"""Further losses of a log, beside the one that is trained on: its parts, such as a z-loss or a router's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from hnf_offline.detect.explosion import largest_explosion
from hnf_offline.detect.measured import logged
from hnf_offline.quantities.loss_curve import component_share, loss_deviation, loss_mean

_LOSS = re.compile(r"(?:^|_)loss(?:es)?(?:_|$)|loss$")
#: Losses that are no part of the training loss: of other data, the loss again, or a scale of it.
_OTHER = re.compile(
    r"(?:^|_)(?:eval|val|valid|validation|test|scale|scaler|scaling|total|avg|average|mean|ema|smooth|smoothed|running|"
    r"best|min|max|lowest|target|final)(?:_|$)"
)
#: Rows that a part must have, rows of the last window, and how near the loss it may be without being the loss.
ROWS, WINDOW, SAME = 40, 100, 1e-6
MOST = 8


def loss_components(log: pl.DataFrame) -> list[dict[str, Any]]:
    """Describe every further training loss of a log.

    Args:
        log: `step`, `loss`, and further losses, known by their names.

    Returns:
        One a column, those with the largest share first: keys "column", "rows", "mean", "deviation", "share" (of the
        loss over the same last rows) and "explosion".
    """
    told = sorted(_components(log), key=lambda one: -abs(one["share"]))
    return told[:MOST]


def _components(log: pl.DataFrame) -> Iterator[dict[str, Any]]:
    steps, loss = logged(log, "loss")
    for name, kind in log.schema.items():
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        if name == "loss" or not kind.is_numeric() or not _LOSS.search(plain) or _OTHER.search(plain):
            continue
        at, values = logged(log, name)
        finite = np.isfinite(values)
        at, values = at[finite], values[finite]
        both, here, there = np.intersect1d(at, steps, return_indices=True)
        known = np.isfinite(loss[there])
        both, whole, part = both[known], loss[there][known], values[here][known]
        if both.size < ROWS or np.allclose(part, whole, rtol=SAME, atol=0.0) or not np.any(part):
            continue
        last, beside = part[-WINDOW:], whole[-WINDOW:]
        share = component_share(last, beside)
        if np.isfinite(share):
            yield {
                "column": name,
                "rows": int(last.size),
                "mean": loss_mean(last),
                "deviation": loss_deviation(last),
                "share": share,
                "explosion": largest_explosion(both, part),
            }
