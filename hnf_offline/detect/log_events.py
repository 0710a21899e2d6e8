"""What a log shows beside its spikes, each with the steps it covers and the numbers that show it."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from hnf_offline.detect import broken_values, loss_scale, plateau, rising, throughput, written
from hnf_offline.detect.gradient_outliers import gradient_outliers
from hnf_offline.detect.written import Written
from hnf_offline.findings import LogEvent, Pathology, Spike

__all__ = ["LogEvent", "Written", "log_events", "log_pathologies"]

#: Kinds that `pathologies` finds by itself, from the spikes.
_OF_SPIKES = frozenset({"nonfinite-loss"})


def log_events(
    log: pl.DataFrame, spikes: Sequence[Spike] = (), how: Written | None = None
) -> tuple[LogEvent, ...]:
    """Find what is wrong or worth knowing in a log beside its spikes, in hindsight.

    Args:
        log: `step`, `loss` and whatever else was logged, one row a step.
        spikes: the spikes of the log.
        how: how the log was written: restarts, repeated rows; None where nothing is known.

    Returns:
        The events in order of their first step.
    """
    if log.is_empty():
        return ()
    found = (
        *broken_values.nonfinite_loss(log),
        *broken_values.nonfinite_gradients(log),
        *gradient_outliers(log, spikes),
        *rising.slow_divergence(log, spikes),
        *rising.open_spike(log, spikes),
        *plateau.plateau(log),
        *loss_scale.collapse(log),
        *loss_scale.skipped_steps(log),
        *throughput.drops(log),
        *written.gaps(log),
        *(() if how is None else written.repeated(how)),
    )
    return tuple(sorted(found, key=lambda event: (event.first, event.last, event.kind)))


def log_pathologies(
    log: pl.DataFrame, spikes: Sequence[Spike], how: Written | None = None
) -> tuple[Pathology, ...]:
    """Select what of the events is wrong with the run, not only worth knowing.

    Returns:
        Those of severity "warning" and "danger", without the ones that spikes already tell.
    """
    return tuple(
        Pathology(event.kind, "", event.first, event.evidence)
        for event in log_events(log, spikes, how)
        if event.severity != "info" and event.kind not in _OF_SPIKES
    )
