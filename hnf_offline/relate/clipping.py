"""Clipping, for runs whose update is as long as their gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hnf_offline.findings import Advice, Spike
from hnf_offline.relate.evidence import number
from hnf_offline.relate.series import column

if TYPE_CHECKING:
    import polars as pl

#: The norm to clip at is the largest of so many calm rows of the log; so many steps before an onset are calm no more.
CALM_ROWS, BEFORE_ONSET = 60, 10
#: Calm rows that it takes at least.
FEWEST_ROWS = 10
#: What the study's runs with SGD and momentum did (reports/study, experiment 3, "clip at 1"; a test holds them to it).
RUNS, FAILED_AS_WAS, FAILED_CLIPPED = 8, 6, 0


def clip(
    profile: pl.DataFrame, log: pl.DataFrame | None, spikes: Sequence[Spike], spike: Spike, start: int
) -> list[Advice]:
    """Advise to clip at the gradient norm of the calm steps before a spike at the edge.

    Only for SGD, with momentum or without: Adam divides by the gradient's own size, so that a clipped gradient moves it
    nearly as far.

    Args:
        profile: the long table.
        log: the log's rows, with the gradient norm before clipping.
        spikes: all spikes: what lies in one, or just before, is not calm.
        spike: one of them, at the edge of stability.
        start: checkpoint to go on from.

    Returns:
        One piece of advice; none for Adam, where S is not measured, or where too few norms are logged.
    """
    quantities = profile["quantity"]
    if quantities.str.starts_with("adam.").any() or not (quantities == "hessian.stability_ratio").any():
        return []
    steps, norms = column(log, "grad_norm")
    calm = np.isfinite(norms) & (steps < spike.onset - BEFORE_ONSET)
    for one in spikes:
        calm &= (steps < one.onset - BEFORE_ONSET) | (steps > (one.end if one.end is not None else np.inf))
    steps, norms = steps[calm][-CALM_ROWS:], norms[calm][-CALM_ROWS:]
    if norms.size < FEWEST_ROWS or norms.max() <= 0:
        return []
    most = float(norms.max())
    return [
        Advice(
            f"or clip the gradient norm at {number(most)} from checkpoint {start} on",
            f"{number(most)} is its largest value in the {norms.size} calm rows of the log up to step {steps[-1]}. "
            "A step of SGD is as long as its gradient, so a clipped one cannot run away; S is not lowered by it, and "
            f"smaller spikes may still come. Of {RUNS} runs of the study with SGD and momentum {FAILED_AS_WAS} failed, "
            f"and {FAILED_CLIPPED or 'none'} of the same runs with clipping",
            start,
            {"gradient_norm": most, "calm_gradient_norm_median": float(np.median(norms))},
            spike.id,
            policy=f"clip={most:.9g}",
        )
    ]
