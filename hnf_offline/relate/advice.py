"""What to do, always with its numbers; "stable at this checkpoint", never "stable"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hnf_offline.findings import Advice, Alarm, Spike, Story
from hnf_offline.relate.clipping import clip
from hnf_offline.relate.evidence import (
    Evidence,
    gather,
    largest_stable_rate,
    left_unmeasured,
    number,
    stability_at,
)
from hnf_offline.relate.healthy import worst
from hnf_offline.relate.series import column, last_at_or_before, points
from hnf_offline.table import of_checkpoints

if TYPE_CHECKING:
    import polars as pl

#: Lasting cut where S has not crossed 1 yet: the ratchet of the study, section 6.
RATCHET = 0.7


def advice(
    profile: pl.DataFrame,
    log: pl.DataFrame | None,
    spikes: Sequence[Spike],
    stories: Sequence[Story],
    alarms: Sequence[Alarm],
    gap: int | None,
    last_healthy: int | None,
) -> tuple[Advice, ...]:
    """Say what to do about each spike, or that there is nothing to do and how much headroom is left.

    Args:
        profile: the long table; may be empty.
        log: the log's rows.
        spikes: the loss spikes.
        stories: their stories, in the same order.
        alarms: annotated alarms.
        gap: checkpoint gap.
        last_healthy: the last healthy checkpoint.

    Returns:
        One piece of advice a cause that can be acted on, worst first for the run as it stands; equal advice
        for several spikes at the edge is given once, for the worst.
    """
    if not spikes:
        return _nothing_to_do(profile, last_healthy, column(log, "loss")[0].size > 0)
    result: list[Advice] = []
    cause = {story.spike: story.cause for story in stories}
    edge = worst([spike for spike in spikes if cause.get(spike.id) == "edge"])
    for spike, story in zip(spikes, stories, strict=True):
        evidence = gather(profile, log, spike, alarms, gap)
        if story.cause == "learning-rate":
            result.extend(_cap(profile, evidence, last_healthy))
        elif spike is edge:
            lower = _lower_for_good(profile, evidence, last_healthy)
            result.extend(lower)
            if lower:
                result.extend(clip(profile, log, spikes, spike, lower[0].step))
        elif story.cause == "bad-batch":
            result.append(_look_at_rows(spike))
        elif story.cause == "resume":
            result.append(_check_resume(spike))
        elif story.cause == "unknown":
            result.append(_find_out(spike, evidence, profile))
    lost = next((spike for spike in spikes if not spike.recovered), None)
    if lost is not None and last_healthy is not None:
        result.append(_restart(lost, last_healthy))
    return tuple(result)


def _nothing_to_do(profile: pl.DataFrame, last_healthy: int | None, logged: bool) -> tuple[Advice, ...]:
    """Say that there is nothing to do and how much headroom is left; without a log, that a log is needed.

    Returns:
        One piece of advice.
    """
    action = "nothing to do" if logged else "bring the loss log"
    seen = "no loss spike was found" if logged else "without a log no loss spike can be seen"
    steps, values = points(of_checkpoints(profile), "hessian.stability_ratio")
    known = last_at_or_before(steps, values, 2**62)
    if known is None or known[1] <= 0:
        return (Advice(action, f"{seen}; headroom is not known without S", last_healthy or 0, {}),)
    step, ratio = known
    numbers = {"stability_ratio": ratio, "headroom": 1 / ratio}
    rate = largest_stable_rate(profile, step)
    limit = ""
    if rate is not None:
        numbers["largest_stable_learning_rate"] = rate
        limit = f": a learning rate up to {number(rate)} is stable at this checkpoint"
    left = f"headroom {number(1 / ratio)} is left at checkpoint {step} (S = {number(ratio)}){limit}"
    if ratio >= 1:
        left = f"S is {number(ratio)} at checkpoint {step}: no headroom is left, the run lives at the edge"
    return (Advice(action, f"{seen}; {left}", step, numbers),)


def _cap(profile: pl.DataFrame, evidence: Evidence, last_healthy: int | None) -> list[Advice]:
    stable, jump, spike = evidence.last_stable, evidence.jump, evidence.spike
    used = jump.after if jump is not None else evidence.learning_rate
    limit = None if stable is None else largest_stable_rate(profile, stable[0])
    if stable is None or limit is None:
        if jump is None:
            return []
        return [
            Advice(
                f"do not raise the learning rate {number(jump.factor)}-fold at step {jump.step}; "
                f"keep it at {number(jump.before)}",
                "the loss spiked within a few steps of the rise; without S no other bound can be given",
                last_healthy if last_healthy is not None else jump.step,
                {"learning_rate_before": jump.before, "learning_rate_after": jump.after},
                spike.id,
                policy=_capped(jump.before),
            )
        ]
    numbers = {"largest_stable_learning_rate": limit, "stability_ratio": stable[1]}
    past = ""
    if used is not None:
        numbers |= {"learning_rate": used, "times_past_the_edge": used / limit}
        past = f"; it was {number(used / limit)} times past the edge" if used > limit else ""
    return [
        Advice(
            f"keep the learning rate at or below {number(limit)} (lr/S at {evidence.place(stable[0])}){past}",
            f"S was {stability_at(profile, stable[0])} at {evidence.place(stable[0])}, "
            f"headroom {number(1 / stable[1])}; a rate "
            f"below lr/S is stable at this {evidence.place(stable[0]).split()[0]}, later ones need their own",
            _checkpoint(profile, stable[0]),
            numbers,
            spike.id,
            policy=_capped(limit),
        )
    ]


def _lower_for_good(profile: pl.DataFrame, evidence: Evidence, last_healthy: int | None) -> list[Advice]:
    before, spike = evidence.before, evidence.spike
    if before is None:
        return []
    alarm = evidence.first_alarm
    # Zoomed steps just before the onset are part of the spike already: S there asks for far too low a rate.
    nearest = _checkpoint(profile, before[0]) if before[0] in evidence.zoomed else before[0]
    since = nearest if alarm is None else min(alarm.known_at, nearest)
    steps, _ = points(of_checkpoints(profile), "hessian.stability_ratio")
    steps = np.union1d(steps, [since])
    limits = [
        rate
        for step in steps[(steps >= since) & (steps < spike.onset)].tolist()
        if (rate := largest_stable_rate(profile, step)) is not None
    ]
    numbers: dict[str, float] = {"stability_ratio": before[1]}
    target, policy = f"{RATCHET:g} times its value", f"lr-scale={RATCHET:g}"
    known = evidence.learning_rate
    if known is None:
        rate_steps, rates = points(profile, "optimizer.learning_rate")
        last = last_at_or_before(rate_steps, rates, spike.onset - 1)
        known = None if last is None else last[1]
    if limits:
        limit = min(limits)
        numbers["largest_stable_learning_rate"] = limit
        if known is not None and limit >= RATCHET * known:
            numbers |= {"learning_rate": known, "recommended_learning_rate": RATCHET * known}
            target = (
                f"{number(RATCHET * known)} ({RATCHET:g} times {number(known)}, lr/S was {number(limit)})"
            )
        else:
            numbers["recommended_learning_rate"] = limit
            target = f"{number(limit)} (lr/S)"
            if known is not None:
                numbers["learning_rate"] = known
    elif known is not None:
        numbers |= {"learning_rate": known, "recommended_learning_rate": RATCHET * known}
        target = f"{number(RATCHET * known)} ({RATCHET:g} times {number(known)})"
    if "recommended_learning_rate" in numbers:
        policy = _capped(numbers["recommended_learning_rate"])
    start = last_healthy if last_healthy is not None else _checkpoint(profile, before[0])
    return [
        Advice(
            f"lower the learning rate for good to at most {target} from checkpoint {start} on",
            f"S was {number(before[1])} at {evidence.place(before[0])}. A cut that is taken back brings the next "
            "spike, since sharpness grows until S is 1 again; a decay that ignores S helps as much as a cut "
            "driven by it. "
            "A smaller beta2 makes spikes smaller but more frequent. This rate is stable at this checkpoint; "
            "sharpness may go on growing",
            start,
            numbers,
            spike.id,
            policy=policy,
        )
    ]


def _capped(rate: float) -> str:
    """Spell a cap as `hnf whatif` takes it.

    Returns:
        "lr-cap=0.0084".
    """
    return f"lr-cap={rate:.9g}"


def _checkpoint(profile: pl.DataFrame, step: int) -> int:
    """Last profiled checkpoint up to a step: a zoomed step cannot be gone back to.

    Returns:
        Its step; the step itself where none is known.
    """
    saved = of_checkpoints(profile)["step"]
    earlier = saved.filter(saved <= step)
    return int(earlier.max()) if earlier.len() else step  # type: ignore[arg-type]


def _look_at_rows(spike: Spike) -> Advice:
    return Advice(
        f"look at the rows of step {spike.onset}; skip that batch if you retrain",
        f"the loss fell back in {spike.recovery_steps} step{'' if spike.recovery_steps == 1 else 's'} and S "
        "was well below 1: the learning rate is not the cause, lowering it will not help",
        spike.onset,
        {"loss_before": spike.loss_before, "loss_peak": spike.loss_peak},
        spike.id,
        policy=f"skip={spike.onset}",
    )


def _check_resume(spike: Spike) -> Advice:
    return Advice(
        f"check what the resume before step {spike.onset} restored: optimizer state, data order",
        "the loss spiked within a few steps of a resume; curvature does not explain such spikes",
        spike.onset,
        {"loss_before": spike.loss_before, "loss_peak": spike.loss_peak},
        spike.id,
    )


def _find_out(spike: Spike, evidence: Evidence, profile: pl.DataFrame) -> Advice:
    if left_unmeasured(profile):
        action = "measure S as well: run again with --tier curvature"
        because = "optimizer state was saved, so how near the edge of stability the run was can be known"
    elif evidence.before is None or spike.onset - evidence.before[0] > 2 * evidence.gap:
        action = f"save checkpoints with optimizer state around step {spike.onset}, and that step's batch"
        because = "S just before this spike is not known, so its cause cannot be told"
    else:
        action = f"replay the batch of step {spike.onset}, and retrain up to it step by step"
        if evidence.before[0] in evidence.zoomed:
            action = f"look at the batch of step {spike.onset} and at what the trainer did there"
        because = (
            f"S was {number(evidence.before[1])} at {evidence.place(evidence.before[0])} and explains nothing"
        )
    return Advice(action, because, spike.onset, {"loss_peak": spike.loss_peak}, spike.id)


def _restart(spike: Spike, last_healthy: int) -> Advice:
    offset = "" if spike.offset is None or spike.offset != spike.offset else f" ({spike.offset:+.2f})"
    return Advice(
        f"restart from checkpoint {last_healthy}",
        f"it is the last healthy one before the loss left its band at step {spike.onset} for good{offset}",
        last_healthy,
        {"steps_lost": float(spike.onset - last_healthy)},
        spike.id,
    )
