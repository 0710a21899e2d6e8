"""The loss that a checkpoint gives on the next step's batch against the one that was logged for that step."""

from __future__ import annotations

import itertools
import math

from hnf_offline.check.registry import Check, Outcome
from hnf_offline.check.replay import agree, log_shift, logged_losses
from hnf_offline.check.series import Replays, Series, counted, some
from hnf_offline.findings import Fault

#: Relative difference that dropout, another precision or an auxiliary loss can make.
_CLOSE = 0.1


def look(series: Series) -> Outcome:
    """Compare replayed losses with logged ones.

    Returns:
        A warning where the log counts otherwise or none agrees, a danger for a checkpoint that alone does not agree.
    """
    replays = series.replays or Replays(skipped_because="nothing was replayed")
    skipped = "; ".join(f"step {step}: {why}" for step, why in list(replays.errors.items())[:3])
    if not replays.losses:
        return Outcome((), "", replays.skipped_because or skipped)
    logged = logged_losses(series.run)
    steps = sorted({step for step, _ in replays.losses})
    looked = f"{some(len(steps), 'checkpoint')} on the batch of their next step"
    shift = log_shift(replays.losses, logged)
    if shift:
        return Outcome((_shifted(series, shift),), looked, skipped)
    tested = [step for step in steps if step + 1 in logged and (step, step + 1) in replays.losses]
    off = [step for step in tested if not agree(replays.losses[step, step + 1], logged[step + 1])]
    if not tested:
        return Outcome((), "", "no replayed batch has a logged loss")
    if not off:
        return Outcome((), looked, skipped)
    if not _every_step(logged):
        because = "the log has no row for every step, so its losses may be means over several"
        return Outcome((), "", because)
    # The rows of a neighbouring step under this step's loss: the batches are counted otherwise than the log.
    for name, batch in (("later", 2), ("earlier", 0)):
        rows = [step for step in tested if (step, step + batch) in replays.losses]
        fit = [step for step in rows if agree(replays.losses[step, step + batch], logged[step + 1])]
        if len(fit) > 1 and 4 * len(fit) >= 3 * len(rows):
            evidence = (
                f"the logged loss of a step is that of the batch one step {name}, in {len(fit)} of {len(rows)} "
                "checkpoints: the saved rows are shifted by one step"
            )
            remedy = "say which step the first row is of with [batches] steps in run.toml"
            return Outcome((Fault(CHECK.name, "warning", None, "", evidence, remedy),), looked, skipped)
    if len(off) == len(tested) or 2 * len(off) > len(tested):
        return Outcome((_all_off(series, replays, logged, off, tested),), looked, skipped)
    faults = tuple(
        Fault(
            CHECK.name,
            "danger",
            step,
            series.path_of(step),
            f"the batch of step {step + 1} gives the loss {replays.losses[step, step + 1]:.5g} on these weights, the "
            f"log says {logged[step + 1]:.5g}; the other replayed checkpoints agree",
            "these weights are not those training went on with: copy the checkpoint again",
        )
        for step in off
    )
    return Outcome(faults, looked, skipped)


def _shifted(series: Series, shift: int) -> Fault:
    said = (
        "the log counts from 0: its row s is the loss of the weights after s updates"
        if shift == 1
        else "the log counts one step more than the checkpoints' names: its row s + 2 is the loss on checkpoint s"
    )
    log = series.run.log
    where = series.relative(log.files[0]) if log is not None and len(log.files) == 1 else ""
    sign = "+" if shift > 0 else "-"
    remedy = f"read step s of this log as update s {sign} 1; hnf report, monitor and diff do so by themselves"
    return Fault(CHECK.name, "warning", None, where, f"replays show: {said}", remedy)


def _all_off(
    series: Series, replays: Replays, logged: dict[int, float], off: list[int], tested: list[int]
) -> Fault:
    pairs = [(replays.losses[step, step + 1], logged[step + 1]) for step in off]
    relative = sorted(
        abs(one - other) / max(1.0, abs(other)) if math.isfinite(one) and math.isfinite(other) else math.inf
        for one, other in pairs
    )[len(pairs) // 2]
    step = off[0]
    evidence = (
        f"{len(off)} of {len(tested)} replayed losses are not those logged ({counted(off)}), such as "
        f"{replays.losses[step, step + 1]:.5g} for {logged[step + 1]:.5g} at step {step + 1}"
    )
    if relative > _CLOSE:
        remedy = "the batches, the model or the log are not those of this run: see [batches] and [model] in run.toml"
    elif _dropout(series):
        remedy = "dropout was on in training and is off in the replay: that explains a few percent"
    else:
        remedy = "trained in lower precision, or with another loss (smoothing, auxiliary terms)? say so to the reader"
    return Fault(CHECK.name, "warning", None, "", evidence, remedy)


def _dropout(series: Series) -> bool:
    return any(
        "drop" in name and isinstance(value, int | float) and value > 0
        for name, value in series.run.configuration.items()
    )


def _every_step(logged: dict[int, float]) -> bool:
    steps = sorted(logged)
    ones = sum(after - before == 1 for before, after in itertools.pairwise(steps))
    return 2 * ones >= len(steps) - 1


CHECK = Check(
    name="replayed-loss",
    cost="replay",
    looks_for="a loss on the next batch that is not the logged one, and a log that counts from 0",
    matters="It is the proof that weights, model, batches and log belong together; without it nothing else is worth "
    "believing.",
    remedy="check which batches, model and log belong to these checkpoints",
    look=look,
)
