"""Which stretches are worth zooming: from a checkpoint to a spike, and to where its alarm became known. No torch."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hnf_offline.findings import Alarm, Findings, Spike
from hnf_offline.relate.rules import STABILITY_RULES
from hnf_offline.relate.series import points
from hnf_offline.table import of_checkpoints

if TYPE_CHECKING:
    import polars as pl

    from hnf_offline.run.records import Run

RATIO = "hessian.stability_ratio"
#: S at the edge of stability.
EDGE = 1.0
#: Gaps to go back before the one an alarm became known in, where S had passed its level before.
GAPS_BACK = 2


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch to retrain step by step.

    Attributes:
        start: step of the checkpoint to retrain from; it has optimizer state.
        stop: last step to train.
        spikes: ids of the spikes it is for.
        because: what it will show, in words.
    """

    start: int
    stop: int
    spikes: tuple[int, ...]
    because: str


def stretches_to_zoom(run: Run, profile: pl.DataFrame, findings: Findings) -> tuple[Stretch, ...]:
    """Choose the stretches whose zoom makes leads and first layers known to the step.

    For each spike two: from the last checkpoint with optimizer state before the onset to the onset (where S is
    past 1 there already, from the one before its crossing, at most two gaps earlier), and from
    the checkpoint with optimizer state before the one at which the story's first S alarm became known to that
    one. Where S was past the alarm's level already at the start of that gap, or is not known there, it goes
    back one more gap, at most twice. Stretches that overlap or touch are one. A retraining passes no resume,
    so a spike at one gets none, and no stretch contains one; S needs optimizer state, so none starts
    without.

    Args:
        run: the run directory as found on disk.
        profile: the long table; may be empty, then only the stretches before onsets are known.
        findings: what was found in it.

    Returns:
        The stretches, ascending, none overlapping another.
    """
    ratio, unusable = _known(profile)
    states = sorted({one.step for one in run.checkpoints if one.optimizer_files} - unusable)
    chosen: list[Stretch] = []
    for spike in findings.spikes:
        if spike.at_resume:
            continue
        chosen += _before_onset(spike, states, ratio, run.resume_steps)
        alarm = _first_alarm(spike, findings)
        if alarm is not None:
            chosen += _around_alarm(spike, alarm, states, ratio)
    return _merged([one for one in chosen if not _passes_resume(one, run.resume_steps)], run.resume_steps)


def _before_onset(
    spike: Spike, states: list[int], ratio: dict[int, float], resume_steps: tuple[int, ...]
) -> list[Stretch]:
    place = bisect_left(states, spike.onset) - 1
    if place < 0:
        return []
    because = f"S and the first layer at every step before the onset of spike {spike.id}"
    shortest = Stretch(states[place], spike.onset, (spike.id,), because)
    # Where S is past the edge already, the crossing is looked for in the gaps before, as far as a retraining goes.
    for start in reversed(states[max(0, place - GAPS_BACK) : place + 1]):
        longer = replace(shortest, start=start)
        if ratio.get(start, 0.0) <= EDGE and not _passes_resume(longer, resume_steps):
            return [longer]
    return [shortest]


def _around_alarm(spike: Spike, alarm: Alarm, states: list[int], ratio: dict[int, float]) -> list[Stretch]:
    place = bisect_left(states, alarm.known_at) - 1
    if place < 0:
        return []
    back = 0
    while back < GAPS_BACK and place - back > 0 and not _below(ratio.get(states[place - back]), alarm):
        back += 1
    because = f"the step at which the alarm of spike {spike.id} could first be known"
    return [Stretch(states[place - back], alarm.known_at, (spike.id,), because)]


def _below(ratio: float | None, alarm: Alarm) -> bool:
    return ratio is not None and bool(np.isfinite(ratio)) and ratio <= alarm.threshold


def _first_alarm(spike: Spike, findings: Findings) -> Alarm | None:
    """The story's first alarm, where it is of S; one of the logged learning rate is known to the step already.

    Returns:
        The alarm, None where there is nothing to sharpen.
    """
    story = next((story for story in findings.stories if story.spike == spike.id), None)
    if story is None or story.known_at is None:
        return None
    at = [
        alarm
        for alarm in findings.alarms
        if alarm.spike == spike.id
        and alarm.known_at == story.known_at
        and alarm.layer == ""
        and alarm.severity != "info"
        and alarm.rule in STABILITY_RULES
    ]
    if not at or any(alarm.rule == "headroom" for alarm in at):
        return None
    return at[0]


def _known(profile: pl.DataFrame) -> tuple[dict[int, float], set[int]]:
    """S at the checkpoints, and those whose curvature was measured without S: their state cannot be used.

    Returns:
        Step to S, and steps.
    """
    if not profile.width:
        return {}, set()
    saved = of_checkpoints(profile)
    steps, values = points(saved, RATIO)
    ratio = dict(zip(steps.tolist(), values.tolist(), strict=True))
    return ratio, set(points(saved, "hessian.lambda_max")[0].tolist()) - set(ratio)


def _passes_resume(stretch: Stretch, resume_steps: tuple[int, ...]) -> bool:
    # A resume at step r goes on from the weights after r - 1 updates.
    return any(stretch.start + 1 < step <= stretch.stop for step in resume_steps)


def _merged(chosen: list[Stretch], resume_steps: tuple[int, ...]) -> tuple[Stretch, ...]:
    """Join stretches that overlap or touch, unless the joint one would pass a resume.

    Returns:
        Ascending, disjoint stretches.
    """
    merged: list[Stretch] = []
    for one in sorted(chosen, key=lambda stretch: (stretch.start, stretch.stop)):
        joint = _joint(merged[-1], one) if merged and one.start <= merged[-1].stop else None
        if joint is None or _passes_resume(joint, resume_steps):
            merged.append(one)
        else:
            merged[-1] = joint
    return tuple(merged)


def _joint(first: Stretch, second: Stretch) -> Stretch:
    reasons = dict.fromkeys([*first.because.split("; "), *second.because.split("; ")])
    spikes = tuple(sorted({*first.spikes, *second.spikes}))
    return Stretch(first.start, max(first.stop, second.stop), spikes, "; ".join(reasons))
