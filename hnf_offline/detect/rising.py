"""A loss that ends high without a jump, and a spike that the end of the log cuts off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from hnf_offline.detect.measured import logged
from hnf_offline.detect.spikes import DIVERGED_NATS, DIVERGED_RATIO, least_rise
from hnf_offline.detect.trailing import SIGMA_PER_MAD, block_medians
from hnf_offline.findings import LogEvent, Spike

# The end above the lowest level, as of a divergence with a jump.
RATIO, NATS = DIVERGED_RATIO - 1, DIVERGED_NATS
SIGMAS = 3.0  # and this many standard deviations of single rows
MEDIAN_ROWS, SHORT_MEDIAN_ROWS, LONG_LOG = 20, 5, 200
UNDECIDED_ROWS = 5


def slow_divergence(log: pl.DataFrame, spikes: Sequence[Spike]) -> Iterator[LogEvent]:
    """A loss that climbs from its lowest level to the end of the log, with no jump a spike rule could see.

    The median of the last 20 rows (5 in logs below 200 rows) lies half of the lowest such median, 0.3 nat (of losses
    that began below 3, a tenth of where they began) and three standard deviations of single rows above that lowest
    one. Looks back from the end of the log.

    Yields:
        Kind "slow-divergence", at most one; none where the last spike already is a divergence.
    """
    if spikes and spikes[-1].kind != "spike" and spikes[-1].end is None:
        return
    steps, loss = logged(log, "loss")
    keep = np.isfinite(loss)
    steps, loss = steps[keep], loss[keep]
    rows = MEDIAN_ROWS if loss.size >= LONG_LOG else SHORT_MEDIAN_ROWS
    if loss.size < 4 * rows:
        return
    level = block_medians(loss, rows)
    last = steps[loss.size % rows :][rows - 1 :: rows]
    lowest = int(np.argmin(level))
    if level.size - 1 - lowest < 2:
        return
    sigma = SIGMA_PER_MAD * float(np.median(np.abs(loss[loss.size % rows :] - np.repeat(level, rows))))
    rise = float(level[-1] - level[lowest])
    if rise > max(least_rise(loss), RATIO * abs(float(level[lowest])), SIGMAS * sigma):
        evidence = (
            f"median loss climbed from {level[lowest]:.4g} at step {last[lowest]} to {level[-1]:.4g} at "
        )
        evidence += f"the end of the log (step {steps[-1]})."
        yield LogEvent("slow-divergence", "danger", int(last[lowest]), int(steps[-1]), evidence)


def open_spike(log: pl.DataFrame, spikes: Sequence[Spike]) -> Iterator[LogEvent]:
    """A spike so near the end of the log that nobody can say whether the loss came back.

    Yields:
        Kind "open-spike", at most one.
    """
    if not spikes or spikes[-1].kind != "spike" or spikes[-1].end is not None:
        return
    steps, loss = logged(log, "loss")
    spike = spikes[-1]
    after = int(np.sum(steps >= spike.onset))
    if after < UNDECIDED_ROWS:
        evidence = (
            f"the log ends at step {steps[-1]} with loss {loss[-1]:.4g}, {after} rows into spike {spike.id} "
        )
        evidence += f"(before it {spike.loss_before:.4g}): too few to tell a spike from a divergence."
        yield LogEvent("open-spike", "info", spike.onset, int(steps[-1]), evidence)
