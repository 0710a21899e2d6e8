"""What a log shows beside its spikes, each with the steps it covers and the numbers that show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import polars as pl

from hnf_offline.detect import broken_values, loss_scale, memory_growth, plateau, rising, throughput, written
from hnf_offline.detect.gradient_outliers import gradient_outliers
from hnf_offline.detect.overfitting import validation_gaps
from hnf_offline.detect.written import Written
from hnf_offline.findings import LogEvent, Pathology, Spike

__all__ = ["LogEvent", "Written", "log_events", "log_pathologies"]

#: Kinds that `pathologies` finds by itself, from the spikes.
_OF_SPIKES = frozenset({"nonfinite-loss"})
_OVERFITTING = "overfitting"
#: What can be done about each kind.
ACTIONS: Mapping[str, str] = {
    "nonfinite-gradient": "Where a loss scaler skips them a few are normal; else clip, and look at those batches.",
    "gradient-outliers": "Clip the gradient's norm a little above its usual level; look at the batches of those steps.",
    "slow-divergence": "Go back to a checkpoint before the climb, with a lower learning rate.",
    "plateau": "Look whether the optimizer was given the parameters and whether labels fit their inputs; then try "
    "another learning rate.",
    "loss-scale-collapse": "Gradients overflow at every scale: train in bfloat16, or find the layer that overflows.",
    "skipped-steps": "Each skipped step trains nothing: begin with a lower loss scale, or train in bfloat16.",
    "throughput-drop": "Look at what changed there: a slow node, data loading, longer rows, a full disk.",
    "memory-growth": "Look for what is kept from step to step (losses summed without .item(), a growing list or "
    "cache); until it is found, restart from a checkpoint before memory ends.",
    "duplicated-log": "Let one process write the log; where two runs wrote into it, name the right file with [log] "
    "files in run.toml.",
    _OVERFITTING: "Take the checkpoint of the lowest validation loss; more data, stronger regularisation or a "
    "smaller model helps, more steps do not.",
}


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
        *memory_growth.memory_growth(log, () if how is None else how.restarts),
        *written.gaps(log),
        *(() if how is None else written.repeated(how)),
    )
    return tuple(sorted(found, key=lambda event: (event.first, event.last, event.kind)))


def log_pathologies(
    log: pl.DataFrame, spikes: Sequence[Spike], how: Written | None = None
) -> tuple[Pathology, ...]:
    """Select what of the events is wrong with the run, not only worth knowing; and overfitting.

    Returns:
        Those of severity "warning" and "danger", without the ones that spikes already tell.
    """
    wrong = (
        Pathology(event.kind, "", event.first, event.evidence, ACTIONS.get(event.kind, ""))
        for event in log_events(log, spikes, how)
        if event.severity != "info" and event.kind not in _OF_SPIKES
    )
    return (*wrong, *_overfitting(log))


def _overfitting(log: pl.DataFrame) -> Iterator[Pathology]:
    """A validation loss that rises while the training loss falls.

    Yields:
        Kind "overfitting", at most one.
    """
    gap = validation_gaps(log)
    if gap is not None and gap.onset is not None:
        evidence = (
            f"{gap.column} was lowest at step {gap.best_step} ({gap.best:.4g}) and ends {gap.rise:.3g} higher, while "
            f"the training loss fell further; the gap went from {gap.first:.3g} to {gap.last:.3g}."
        )
        yield Pathology(_OVERFITTING, "", gap.onset, evidence, ACTIONS[_OVERFITTING])
