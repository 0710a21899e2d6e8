"""Is the model initialised as it should be? Which known scheme each matrix follows, and what is off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.check.registry import Check, Outcome
from hnf_offline.check.series import Series, some
from hnf_offline.findings import Fault
from hnf_offline.run.records import Checkpoint
from hnf_offline.run.remote import check_room

if TYPE_CHECKING:
    from hnf_offline.check.initial import Initial

#: A checkpoint counts as initial up to this many steps, and only while the logged learning rates up to it sum to
#: less than this part of the median deviation of the matrices: a step moves a weight by about its rate.
MOST_STEPS, MOST_DRIFT = 20, 0.1


def look(series: Series) -> Outcome:
    """Look at the first checkpoint, where it is an initial one.

    Returns:
        Faults of single tensors and of the whole; what it looks like is in `looked_at`.
    """
    from hnf_offline.check.initial_judgement import already_trained, judge, of_the_replay
    from hnf_offline.check.initial_remarks import SMALLER_HEAD, Remark, wide_head
    from hnf_offline.check.initial_replay import first_pass
    from hnf_offline.check.initial_tensors import initial_tensors
    from hnf_offline.check.replay import WEIGHTS_ALONE
    from hnf_offline.run.formats import load_weights

    if not series.run.checkpoints:
        return Outcome((), "", "the run has no checkpoint")
    first = series.run.checkpoints[0]
    if first.adapter:
        return Outcome((), "", "the checkpoints are adapters")
    drift = _drift(series, first)
    if drift is None:
        return Outcome((), "", f"cannot say: the first checkpoint is at step {first.step}")
    check_room(series.run.path, [first])
    weights = load_weights(first)
    tensors = initial_tensors(weights)
    matrices = [one for one in tensors if one.place is not None and not one.constant]
    if not matrices:
        return Outcome((), "", f"checkpoint {first.step} holds no weight matrix that can be judged")
    if drift > MOST_DRIFT * _median(matrices):
        because = f"learning rates up to it sum to {drift:.2g}, which is much beside the weights"
        return Outcome((), "", f"cannot say: the first checkpoint is at step {first.step}, and {because}")
    trained = already_trained(tensors)
    if trained:
        return Outcome(
            (), "", f"cannot say: the weights of checkpoint {first.step} were trained before: {trained}"
        )
    settings = series.settings.get(first.step) or _settings(series)
    remarks, looks = judge(tensors, settings, drift)
    replayed = (
        first_pass(series.run, first, weights, series.model, series.device)
        if series.forward
        else WEIGHTS_ALONE
    )
    because, head = "", wide_head(tensors)
    if isinstance(replayed, str):
        because = f"the first loss and the growth over depth: {replayed}"
        if head:
            remarks = (
                *remarks,
                Remark("info", f"{head}; not replayed, so the first loss is not known", SMALLER_HEAD),
            )
    else:
        more, seen = of_the_replay(replayed, head)
        remarks, looks = (*remarks, *more), f"{looks}; {seen}"
    path = series.path_of(first.step)
    faults = tuple(
        Fault(CHECK.name, one.severity, first.step, path, one.evidence, one.remedy) for one in remarks
    )
    return Outcome(faults, f"checkpoint {first.step}, {some(len(tensors), 'tensor')}: {looks}", because)


def _drift(series: Series, first: Checkpoint) -> float | None:
    # What training can have moved a weight by since step 0; None where that is not known or surely too much.
    if first.step == 0:
        return 0.0
    log = series.run.log
    if first.step > MOST_STEPS or log is None or "learning_rate" not in log.rows.columns:
        return None
    known = log.rows.select("step", "learning_rate").drop_nulls()
    rates = {step: rate for step, rate in known.iter_rows() if 1 <= step <= first.step}
    return float(sum(rates.values())) if len(rates) == first.step else None


def _median(matrices: list[Initial]) -> float:
    return sorted(one.deviation for one in matrices)[len(matrices) // 2]


def _settings(series: Series) -> dict[str, object]:
    return {} if series.run.model is None else dict(series.run.model.config)


CHECK = Check(
    name="initialisation",
    cost="first",
    looks_for="an initial checkpoint with a layer that is scaled, empty or copied, or whose first loss is no guess",
    matters="What begins wrong costs the warm-up at best; a dead or copied layer is never repaired by training.",
    remedy="initialise that layer like its kin, and start again",
    look=look,
)
