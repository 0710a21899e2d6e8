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
    at = dict(zip(steps.tolist(), losses.tolist(), strict=True))
    return {spike.id: at.get(spike.onset, float("nan")) for spike in spikes}


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
        later = np.arange(end + BACK_ROWS, steps.size)
        beyond = (later - end > AGAIN_ROWS) | (steps[later] - spike.end > STEPS_PER_ROW * AGAIN_ROWS)
        if beyond.any():
            certain[spike.id] = int(steps[later[beyond.argmax()]])
    return certain
