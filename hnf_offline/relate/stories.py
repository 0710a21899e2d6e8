"""One spike told in order: what explains it, where it began, how early it was known, with every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hnf_offline.findings import Alarm, Spike, Story
from hnf_offline.relate.evidence import (
    Evidence,
    gather,
    largest_stable_rate,
    left_unmeasured,
    number,
    stability_at,
)
from hnf_offline.relate.localise import Moved, first_layer

if TYPE_CHECKING:
    import polars as pl

#: A spike that is over after so many steps fits a bad batch.
QUICK_RECOVERY = 5
#: S "well below 1".
WELL_BELOW = 0.8
#: S at a checkpoint says something about a spike within so many gaps of it, and at least so many steps.
NEAR_GAPS, NEAR_STEPS = 2, 20


def stories(
    profile: pl.DataFrame,
    log: pl.DataFrame | None,
    spikes: Sequence[Spike],
    alarms: Sequence[Alarm],
    gap: int | None,
    regimes: Sequence[Mapping[str, Any]] = (),
) -> tuple[Story, ...]:
    """Tell each spike's story; the causes are asked in order of the strength of their evidence.

    A resume, a learning rate raised past the headroom, the edge of stability, a bad batch; "unknown" where
    none is shown, and then the sentence says what is missing.

    Args:
        profile: the long table; may be empty.
        log: the log's rows.
        spikes: the loss spikes.
        alarms: alarms annotated with the spike they came before.
        gap: checkpoint gap.
        regimes: what the regimes detector found.

    Returns:
        One story a spike, in order of onset.
    """
    return tuple(
        _story(profile, gather(profile, log, spike, alarms, gap), tuple(spikes), regimes) for spike in spikes
    )


def _story(
    profile: pl.DataFrame, evidence: Evidence, spikes: tuple[Spike, ...], regimes: Sequence[Mapping[str, Any]]
) -> Story:
    spike = evidence.spike
    cause, sentence = _cause(profile, evidence, regimes)
    moved = first_layer(profile, spike, spikes) if cause in {"edge", "learning-rate", "unknown"} else None
    alarm = evidence.first_alarm
    lead = None if alarm is None else spike.onset - alarm.known_at
    by_rate = alarm is not None and alarm.rule == "headroom"
    resolution = evidence.logged_every if by_rate else evidence.resolution
    return Story(
        spike=spike.id,
        cause=cause,
        sentence=sentence,
        first_layer="" if moved is None else moved.layer,
        first_quantity="" if moved is None else moved.quantity,
        first_step=None if moved is None else moved.step,
        known_at=None if alarm is None else alarm.known_at,
        lead=lead,
        lead_text=lead_text(lead, resolution, _gap_of(evidence, alarm)),
        timeline=_timeline(evidence, moved),
        resolution=0 if alarm is None else resolution,
    )


def lead_text(lead: int | None, resolution: int, gap: str = "checkpoint") -> str:
    """Spell a lead; below the resolution it is a bound, never a number.

    Args:
        lead: onset - first alarm's known_at, None where there was no alarm.
        resolution: steps between the alarm and the point before it.
        gap: between what: "checkpoint", "log" or "zoom".

    Returns:
        "23 steps", "< 12 steps (checkpoint gap)" or "none".
    """
    if lead is None:
        return "none"
    if lead < resolution:
        return f"< {resolution} steps ({gap} gap)"
    return f"{lead} step" + ("" if lead == 1 else "s")


def _gap_of(evidence: Evidence, alarm: Alarm | None) -> str:
    if alarm is not None and alarm.rule == "headroom":
        return "log"
    return "zoom" if alarm is not None and alarm.known_at in evidence.zoomed else "checkpoint"


def _near(evidence: Evidence) -> tuple[tuple[int, float] | None, tuple[int, float] | None]:
    """S at the measured points next to the onset, where they are near enough to speak of it.

    Returns:
        Before and after.
    """
    near = max(NEAR_STEPS, NEAR_GAPS * evidence.gap)
    before, after, onset = evidence.before, evidence.after, evidence.spike.onset
    return (
        before if before is not None and onset - before[0] <= near else None,
        after if after is not None and after[0] - onset <= near else None,
    )


def _quick(spike: Spike) -> bool:
    return spike.recovered and spike.recovery_steps is not None and spike.recovery_steps <= QUICK_RECOVERY


def _fell_back(spike: Spike) -> str:
    return f"the loss fell back in {spike.recovery_steps} step" + ("" if spike.recovery_steps == 1 else "s")


def _cause(
    profile: pl.DataFrame, evidence: Evidence, regimes: Sequence[Mapping[str, Any]]
) -> tuple[str, str]:
    spike, (before, after) = evidence.spike, _near(evidence)
    if spike.at_resume:
        return "resume", (
            f"the run was resumed just before step {spike.onset}: a fault of the resume "
            "(optimizer state, learning rate or data order), not of training"
        )
    raised = _raised(profile, evidence)
    if raised:
        return "learning-rate", raised
    edge = _edge(evidence, before, regimes)
    if edge:
        return "edge", edge
    levels = [value for known in (before, after) if known is not None for value in (known[1],)]
    if _quick(spike) and before is not None and max(levels) < WELL_BELOW and not evidence.stability:
        return "bad-batch", (
            f"no curvature cause: S was {number(max(levels))}; {_fell_back(spike)}: "
            f"look at the data of step {spike.onset}"
        )
    return "unknown", _unknown(profile, evidence, before, after)


def _raised(profile: pl.DataFrame, evidence: Evidence) -> str:
    """Sentence for a learning rate raised past the headroom, "" where that is not shown.

    Returns:
        The sentence.
    """
    headroom = [
        alarm
        for alarm in evidence.stability
        if alarm.rule == "headroom" and evidence.spike.onset - alarm.known_at <= 2 * NEAR_STEPS
    ]
    jump, stable = evidence.jump, evidence.last_stable
    limit = None if stable is None else largest_stable_rate(profile, stable[0])
    if jump is not None:
        rose = f"the learning rate rose {number(jump.factor)}-fold at step {jump.step}"
        rose += f" ({number(jump.before)} -> {number(jump.after)})"
        if limit is not None and stable is not None and jump.after > limit:
            return (
                f"{rose}, {number(jump.after / limit)} times past the edge: at {evidence.place(stable[0])} "
                f"S was {stability_at(profile, stable[0])}, so at most {number(limit)} was stable there"
            )
        if headroom:
            return f"{rose}, past the headroom that was last measured"
        if stable is None:
            return f"{rose}; S before it is not known, so how far past the edge cannot be said"
        return ""
    if headroom:
        return headroom[0].text.rstrip(".")
    return ""


def _edge(evidence: Evidence, before: tuple[int, float] | None, regimes: Sequence[Mapping[str, Any]]) -> str:
    """Sentence for a spike at the edge of stability, "" where that is not shown.

    Returns:
        The sentence.
    """
    onset = evidence.spike.onset
    spoken = [alarm for alarm in evidence.stability if alarm.rule in {"edge", "forecast"}]
    climb = any(
        regime.get("regime", regime.get("kind")) == "climb"
        and int(regime.get("start", onset + 1)) <= onset <= int(regime.get("end", -1)) + evidence.gap
        for regime in regimes
    )
    if spoken:
        alarm = min(spoken, key=lambda alarm: alarm.known_at)
        what = "S crossed 1" if alarm.rule == "edge" else "S was forecast to cross 1"
        at = "" if before is None else f"; S was {number(before[1])} at {evidence.place(before[0])}"
        resolution = evidence.resolution if alarm is evidence.first_alarm else evidence.gap
        lead = lead_text(onset - alarm.known_at, resolution, _gap_of(evidence, alarm))
        return f"{what} at {evidence.place(alarm.known_at)}, {lead} before the loss left its band{at}"
    if before is not None and before[1] >= 1:
        lives = "at the end of a climb" if climb else "with no fresh crossing, so the run lives at the edge"
        return f"S was {number(before[1])} at {evidence.place(before[0])}, {lives}"
    if climb and before is not None and before[1] >= WELL_BELOW:
        return f"S was climbing and at {number(before[1])} at {evidence.place(before[0])}"
    return ""


def _unknown(
    profile: pl.DataFrame,
    evidence: Evidence,
    before: tuple[int, float] | None,
    after: tuple[int, float] | None,
) -> str:
    spike = evidence.spike
    if before is None:
        where = "no checkpoint near it" if evidence.before is None else f"none after {evidence.before[0]}"
        where = "not measured at this tier" if left_unmeasured(profile) else where
        missing = f"S before step {spike.onset} is not known ({where}), so a curvature cause is not ruled out"
        if _quick(spike):
            return f"{_fell_back(spike)}, which fits a bad batch; {missing}"
        return missing
    level = f"S was {number(before[1])} at {evidence.place(before[0])}"
    if after is not None:
        level += f" and {number(after[1])} at {after[0]}"
    others = sorted({alarm.rule for alarm in evidence.alarms} - {alarm.rule for alarm in evidence.stability})
    said = f"; other alarms before it: {', '.join(others)}" if others else "; no alarm came before it"
    return f"no cause shown: {level}{said}"


def _timeline(evidence: Evidence, moved: Moved | None) -> tuple[tuple[int, str], ...]:
    spike = evidence.spike
    lines: list[tuple[int, int, str]] = []
    stable = evidence.last_stable
    if stable is not None:
        lines.append((stable[0], 0, f"S = {number(stable[1])}, headroom {number(1 / stable[1])}"))
    if evidence.jump is not None:
        jump = evidence.jump
        lines.append((jump.step, 1, f"learning rate {number(jump.before)} -> {number(jump.after)}"))
    seen: set[tuple[str, str]] = set()
    for alarm in evidence.alarms:
        if (alarm.rule, alarm.quantity) not in seen:
            seen.add((alarm.rule, alarm.quantity))
            lines.append((alarm.known_at, 2, alarm.text.rstrip(".")))
    if evidence.before is not None and evidence.before != stable:
        lines.append((evidence.before[0], 3, f"S = {number(evidence.before[1])}"))
    if moved is not None:
        lines.append((moved.step, 4, moved.evidence))
    lines.append((
        spike.onset,
        5,
        f"loss leaves its band (it was {number(spike.loss_before)}, z {spike.z:.0f})",
    ))
    finite = spike.loss_peak == spike.loss_peak and abs(spike.loss_peak) != float("inf")
    peak = f"peak {number(spike.loss_peak)}" if finite else f"loss is {spike.loss_peak}"
    lines.append((spike.peak, 6, peak))
    if spike.recovered and spike.end is not None:
        back = spike.recovery_steps
        lines.append((spike.end, 7, f"back in its band after {back} step" + ("" if back == 1 else "s")))
    else:
        offset = "" if spike.offset is None or spike.offset != spike.offset else f" ({spike.offset:+.2f})"
        lines.append((spike.peak, 7, f"never recovered{offset}"))
    return tuple((step, text) for step, _, text in sorted(lines, key=lambda line: (line[0], line[1])))
