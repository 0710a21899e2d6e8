"""The last healthy checkpoint: the one to restart from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hnf_offline.findings import Alarm, Spike
from hnf_offline.relate.series import column, points
from hnf_offline.table import of_checkpoints

if TYPE_CHECKING:
    import polars as pl


def worst(spikes: Sequence[Spike]) -> Spike | None:
    """Choose the spike that did the most harm: the first one never recovered from, else the highest.

    Returns:
        The spike, None where there is none.
    """
    lost = [spike for spike in spikes if not spike.recovered]
    if lost:
        return min(lost, key=lambda spike: spike.onset)
    return max(spikes, key=lambda spike: spike.height if np.isfinite(spike.height) else np.inf, default=None)


def last_healthy_checkpoint(
    checkpoints: Sequence[int],
    profile: pl.DataFrame,
    log: pl.DataFrame | None,
    spikes: Sequence[Spike],
    alarms: Sequence[Alarm] = (),
) -> int | None:
    """Find the last checkpoint before the worst trouble that shows none itself.

    Healthy: before the onset and before a learning rate raised past the headroom, outside any other spike,
    S < 1 where it is known, finite weights, and a finite loss of the next step. Without a spike or non-finite
    weights the edge is no trouble (runs live there) and it is the last checkpoint with finite weights.

    Args:
        checkpoints: steps of the checkpoints on disk.
        profile: the long table; may be empty.
        log: the log's rows.
        spikes: the loss spikes.
        alarms: annotated alarms.

    Returns:
        Its step, None where no checkpoint is healthy.
    """
    import polars as pl

    profile = of_checkpoints(profile)  # a zoomed step cannot be gone back to
    steps = sorted({*checkpoints, *(int(step) for step in profile["step"].unique())})
    broken = profile.filter((pl.col("quantity") == "weight.nonfinite") & ~(pl.col("value") <= 0))
    first_broken = broken["step"].min() if broken.height else None
    limit = np.inf if first_broken is None else float(first_broken)  # type: ignore[arg-type]
    trouble = worst(spikes)
    if trouble is not None:
        limit = min(limit, float(trouble.onset))
        raised = [a.known_at for a in alarms if a.spike == trouble.id and a.rule == "headroom"]
        limit = min([limit, *map(float, raised)])
    ratio_steps, ratios = points(profile, "hessian.stability_ratio")
    ratio = dict(zip(ratio_steps.tolist(), ratios.tolist(), strict=True))
    logged, loss = column(log, "loss")
    bad_loss = set((logged[~np.isfinite(loss)] - 1).tolist())
    at_edge = trouble is not None or first_broken is not None
    healthy = [
        step
        for step in steps
        if step < limit
        and step not in bad_loss
        and not any(_during(spike, step) for spike in spikes if spike is not trouble)
        and not (at_edge and not ratio.get(step, 0.0) < 1)
    ]
    return healthy[-1] if healthy else None


def _during(spike: Spike, step: int) -> bool:
    return step >= spike.onset and (spike.end is None or step < spike.end)
