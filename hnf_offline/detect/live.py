"""What of a spike is known while the run goes on: the loss at its onset, and when its end was certain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from hnf_offline.detect.spikes import AGAIN_ROWS, BACK_ROWS, STEPS_PER_ROW, loss_of
from hnf_offline.findings import Spike


def onset_losses(log: pl.DataFrame, spikes: Sequence[Spike]) -> dict[int, float]:
    """Look up the loss with which each spike began: all that was known of its height at its onset.

    Returns:
        Id of the spike -> loss at its onset.
    """
    steps, losses = loss_of(log)
    if not steps.size:
        return {spike.id: float("nan") for spike in spikes}
    onsets = np.array([spike.onset for spike in spikes], dtype=np.int64)
    rows = np.minimum(np.searchsorted(steps, onsets), steps.size - 1)
    found = np.where(steps[rows] == onsets, losses[rows], np.nan)
    return {spike.id: float(loss) for spike, loss in zip(spikes, found, strict=True)}


def certain_ends(log: pl.DataFrame, spikes: Sequence[Spike]) -> dict[int, int]:
    """Say when the end of each spike could no longer move.

    A spike is over once the loss was back in its band for a few rows; a flag within the rows after that would be its
    aftershock and move the end. From the first row on that lies beyond both, end and peak stay what they are,
    whatever follows.

    Args:
        log: columns `step` and `loss`.
        spikes: the spikes of that log.

    Returns:
        Id of the spike -> step of that row; spikes whose end is not certain yet are left out.
    """
    steps, losses = loss_of(log)
    steps = steps[np.isfinite(losses)]
    certain: dict[int, int] = {}
    for spike in spikes:
        if spike.end is None:
            continue
        end = int(np.searchsorted(steps, spike.end))
        beyond = np.searchsorted(steps, spike.end + STEPS_PER_ROW * AGAIN_ROWS, side="right")
        row = max(end + BACK_ROWS, min(end + AGAIN_ROWS + 1, int(beyond)))
        if row < steps.size:
            certain[spike.id] = int(steps[row])
    return certain
