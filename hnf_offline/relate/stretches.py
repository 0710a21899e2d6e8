"""Which stretches are worth zooming: from a checkpoint to a spike, and to where its alarm became known. No torch."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnf_offline.detect.rules import STUDIED
from hnf_offline.findings import Alarm, Findings, Spike
from hnf_offline.relate.rules import STABILITY_RULES
from hnf_offline.relate.series import points
from hnf_offline.table import of_checkpoints

if TYPE_CHECKING:
    import polars as pl

    from hnf_offline.run.records import Run

RATIO = "hessian.stability_ratio"
#: S below which the alarm arms (detect.rules), and steps after a spike in which S is its aftershock.
ARMING, REFRACTORY = STUDIED.off, STUDIED.refractory
#: Steps before an alarm that its forecast rests on: four looks 8 steps apart, and some to come earlier.
HISTORY = 48
#: Steps before its alarm at which a climb has begun, as a rule.
FARTHEST = 96
#: Gaps to go back where checkpoints are farther apart than that.
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

    For each spike the whole climb: up to its onset, from the last checkpoint with optimizer state at which S was
    still below the level at which the alarm arms, and 48 steps before the story's first S alarm, since a forecast
    needs a history. It goes back at most 96 steps or two gaps from that alarm (or from the onset), and not into
    the spike before. A retraining passes no resume, so a spike at one gets no stretch, and none contains one; S
    needs optimizer state, so none starts without. Stretches that overlap or touch are one.

    Args:
        run: the run directory as found on disk.
        profile: the long table; may be empty, then each begins at the last checkpoint before the onset.
        findings: what was found in it.

    Returns:
        The stretches, ascending, none overlapping another.
    """
    ratio, unusable = _known(profile)
    states = sorted({one.step for one in run.checkpoints if one.optimizer_files} - unusable)
    gap = run.gap or 1
    chosen: list[Stretch] = []
    for spike in findings.spikes:
        if spike.at_resume:
            continue
        alarm = _first_alarm(spike, findings)
        rest = max((one.onset for one in findings.spikes if one.onset < spike.onset), default=-REFRACTORY)
        begin = _begin(spike, alarm, states, ratio, max(FARTHEST, GAPS_BACK * gap), rest, run.resume_steps)
        if begin is not None:
            because = f"S and the first layer at every step before the onset of spike {spike.id}"
            if alarm is not None:
                because += "; the step at which its alarm could first be known"
            chosen.append(Stretch(begin, spike.onset, (spike.id,), because))
    return _merged(chosen, run.resume_steps)


def _begin(
    spike: Spike,
    alarm: Alarm | None,
    states: list[int],
    ratio: dict[int, float],
    farthest: int,
    rest: int,
    resume_steps: tuple[int, ...],
) -> int | None:
    """Choose where a spike's stretch begins.

    Returns:
        Step of a checkpoint with optimizer state, None where there is none that could be used.
    """
    before = [
        step
        for step in states[: bisect_left(states, spike.onset)]
        if not _passes_resume(step, spike.onset, resume_steps)
    ]
    if not before:
        return None
    known = spike.onset if alarm is None else alarm.known_at
    history = HISTORY if alarm is not None and alarm.rule != "headroom" else 0
    # Aftershocks of the spike before say nothing about this one.
    within = [step for step in before if step >= known - farthest and step >= rest + REFRACTORY] or before[
        -1:
    ]
    low = [step for step in within if ratio.get(step, 0.0) < ARMING]
    for candidates in ([step for step in low if step <= known - history], low[:1], within[:1]):
        if candidates:
            return candidates[-1]
    return None


def _first_alarm(spike: Spike, findings: Findings) -> Alarm | None:
    """The story's first alarm, where it is of S.

    Returns:
        The alarm, None where there is none.
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
    return next((alarm for alarm in at if alarm.rule != "headroom"), at[0] if at else None)


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


def _passes_resume(start: int, stop: int, resume_steps: tuple[int, ...]) -> bool:
    # A resume at step r goes on from the weights after r - 1 updates.
    return any(start + 1 < step <= stop for step in resume_steps)


def _merged(chosen: list[Stretch], resume_steps: tuple[int, ...]) -> tuple[Stretch, ...]:
    """Join stretches that overlap or touch, unless the joint one would pass a resume.

    Returns:
        Ascending, disjoint stretches.
    """
    merged: list[Stretch] = []
    for one in sorted(chosen, key=lambda stretch: (stretch.start, stretch.stop)):
        joint = _joint(merged[-1], one) if merged and one.start <= merged[-1].stop else None
        if joint is None or _passes_resume(joint.start, joint.stop, resume_steps):
            merged.append(one)
        else:
            merged[-1] = joint
    return tuple(merged)


def _joint(first: Stretch, second: Stretch) -> Stretch:
    reasons = dict.fromkeys([*first.because.split("; "), *second.because.split("; ")])
    spikes = tuple(sorted({*first.spikes, *second.spikes}))
    return Stretch(first.start, max(first.stop, second.stop), spikes, "; ".join(reasons))
