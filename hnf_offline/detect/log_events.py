"""What a log shows beside its spikes, each with the steps it covers and the numbers that show it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl

from hnf_offline.detect import (
    broken_values,
    loss_scale,
    memory_growth,
    overfitting,
    plateau,
    rising,
    throughput,
    written,
)
from hnf_offline.detect.gradient_outliers import gradient_outliers
from hnf_offline.detect.kinds import kind
from hnf_offline.detect.overfitting import validation_gaps
from hnf_offline.detect.written import Written
from hnf_offline.findings import LogEvent, Pathology, Spike

__all__ = ["LogEvent", "Written", "log_events", "log_pathologies"]

#: Kinds that `pathologies` finds by itself, from the spikes.
_OF_SPIKES = frozenset({"nonfinite-loss"})
_EVENTS = (
    kind(
        "nonfinite-gradient",
        rule=f"The gradient norm is not finite although the loss is: {broken_values.SUSTAINED_ROWS} rows in a row, "
        f"{broken_values.SHARE:.0%} of all, and no loss scale is logged.",
        needs=("grad_norm",),
        action="Where a loss scaler skips them a few are normal; else clip, and look at those batches.",
    ),
    kind(
        "slow-divergence",
        rule=f"The median loss of the last {rising.MEDIAN_ROWS} rows ({rising.SHORT_MEDIAN_ROWS} of short logs) lies "
        f"above its lowest by half of that, by {rising.NATS} nat (of losses that began below {10 * rising.NATS:g}, a "
        f"tenth of where they began) and by {rising.SIGMAS:g} deviations of single rows.",
        needs=("loss",),
        action="Go back to a checkpoint before the climb, with a lower learning rate.",
    ),
    kind(
        "plateau",
        rule=f"The loss improves by less than {plateau.PROGRESS:.0%} over {plateau.ROWS} rows and half of the log, "
        f"above {plateau.LEVEL:g} of its first values, in a log that begins where training does.",
        needs=("loss",),
        action="Look whether the optimizer was given the parameters and whether labels fit their inputs; then try "
        "another learning rate.",
    ),
    kind(
        "loss-scale-collapse",
        rule=f"The loss scale falls below {loss_scale.FLOOR:g}, or to it after {loss_scale.ONCE:g} or more.",
        needs=("loss_scale",),
        action="Gradients overflow at every scale: train in bfloat16, or find the layer that overflows.",
    ),
    kind(
        "skipped-steps",
        rule=f"After the search for a scale at the start {loss_scale.SKIPPED_SHARE:.0%} of the updates are skipped, or "
        f"a quarter of those of {loss_scale.BURST_ROWS} rows; {loss_scale.SKIPPED_LEAST} at least.",
        needs=("skipped_steps", "loss_scale"),
        action="Each skipped step trains nothing: begin with a lower loss scale, or train in bfloat16.",
    ),
    kind(
        "throughput-drop",
        rule=f"The median speed of {throughput.BLOCK_ROWS} rows falls below {throughput.DROP:g} of that of the "
        f"{throughput.BLOCK_ROWS * throughput.BASE_BLOCKS} before, and by more than their noise, for longer than that.",
        needs=("throughput", "step_time"),
        action="Look at what changed there: a slow node, data loading, longer rows, a full disk.",
    ),
    kind(
        "memory-growth",
        rule=f"A column of memory rises by {memory_growth.RISE:.0%} or more after its warm-up, in "
        f"{memory_growth.RISING} of {memory_growth.BLOCKS - 1} stretches, and still does in the second half.",
        needs=("any column of memory",),
        action="Look for what is kept from step to step (losses summed without .item(), a growing list or cache); "
        "until it is found, restart from a checkpoint before memory ends.",
    ),
    kind(
        "duplicated-log",
        rule=f"Rows are written again without a restart that explains it, or {written.REPEATED_SHARE:.0%} of the log "
        "are.",
        needs=("step",),
        action="Let one process write the log; where two runs wrote into it, name the right file with [log] files in "
        "run.toml.",
    ),
)
_OVERFITTING = kind(
    "overfitting",
    rule=f"The last {overfitting.AFTER} validation losses (of {overfitting.EVALUATIONS} or more) lie above the lowest "
    f"by {overfitting.RISE:.0%} of it and {overfitting.SIGMAS:g} deviations of their noise, while the training loss "
    "fell.",
    needs=("loss", "any column of a validation loss"),
    action="Take the checkpoint of the lowest validation loss; more data, stronger regularisation or a smaller model "
    "helps, more steps do not.",
)
_KINDS = {one.name: one for one in _EVENTS}


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
        _KINDS[event.kind].at("", event.first, event.evidence)
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
        yield _OVERFITTING.at("", gap.onset, evidence)
